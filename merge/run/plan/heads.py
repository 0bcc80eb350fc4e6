"""Plan the heads of a merge: which tensors are merged, which are copied from one model, and which folders are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.labels import class_names, fold, is_generic
from merge.checkpoints.model_set import ModelSet
from merge.checkpoints.sentence_transformers import pipeline_files
from merge.errors import some
from merge.run.plan.base_model import base_model
from merge.run.plan.classes import label_tensors

NAMES_SHOWN = 6  # tensors in a note


@dataclass(frozen=True)
class Output:
    """One folder that a merge writes.

    Attributes:
        folder: its name inside the output; "" for the output itself.
        owner: the model whose class, config and side files it has.
        sources: canonical name -> (number of the model, name in it) for each model that the tensor is merged from.
        copied: the tensors that are copied from one model.
        labelled: the tensors that have one row per class.
        rows: for each model the index of its row for each class of the result, -1 where it lacks the class.
    """

    folder: str
    owner: Checkpoint
    sources: Mapping[str, tuple[tuple[int, str], ...]]
    copied: frozenset[str] = frozenset()
    labelled: frozenset[str] = frozenset()
    rows: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class HeadPlan:
    """What is merged, what is copied, and which folders are written.

    Attributes:
        policy: of the recipe; None where the models are merged whole.
        given: models and base, modules and heads included.
        merged: the part of each that is compared and aligned: all but the modules, or the base model alone.
        carried: the part of each model that moves into the reference's basis: what is merged, and what is copied with it.
        outputs: the folders; one, but for keep-all.
        whole: whether models are compared and aligned with their heads.
        faults: why the models cannot be merged by this policy; the pre-flight raises them with all others.
        notes: what is left out or taken from one model.
    """

    policy: str | None
    given: ModelSet
    merged: ModelSet
    carried: tuple[Checkpoint, ...]
    outputs: tuple[Output, ...]
    whole: bool = False
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def plan_heads(policy: str | None, given: ModelSet) -> HeadPlan:
    """Return the plan of the models' heads under a policy; from headers alone.

    None merges whole models, whose labels must be the same. `average` has the labels of the first model and averages each
    class over the models that have it. `reference`, `drop` and `keep-all` merge the base models alone; the result has the
    first model's head, no head, or each model's head in a folder of its own.

    Raises:
        MismatchError: a model has no base model that is separate from its head.
    """
    models = given.models
    if policy is None or (policy == "average" and not _labels_differ(models)):
        sources = {name: tuple((m, name) for m in range(len(models))) for name in models[0].tensors}
        encoders = given.map(lambda checkpoint: checkpoint.encoder)
        return HeadPlan(policy, given, encoders, models, (Output("", models[0], sources),), whole=True)
    merged, pooler = _base_models(given)
    plan = HeadPlan(policy, given, merged, merged.models, (), notes=_pooler_notes(models, pooler, policy))
    if policy == "average":
        return _average(plan)
    if policy == "drop":
        return _drop(plan, pooler)
    shared = merged.reference.tensors.keys()
    if policy == "reference":
        left = [
            f"left out of {m.source}: {some(_outside(m, shared), NAMES_SHOWN)}"
            for m in models[1:]
            if _outside(m, shared)
        ]
        head = _outside(models[0], shared)
        taken = [f"taken from {models[0].source} alone: {some(head, NAMES_SHOWN)}"] if head else []
        return replace(plan, outputs=(_keep(plan, 0, ""),), notes=(*plan.notes, *taken, *left))
    folders = output_folders([model.source for model in models])
    outputs = tuple(_keep(plan, k, folder) for k, folder in enumerate(folders))
    heads = tuple(f"{folder}/ has the head of {model.source}" for folder, model in zip(folders, models, strict=True))
    return replace(plan, outputs=outputs, carried=models, notes=(*plan.notes, *heads))


def _labels_differ(models: Sequence[Checkpoint]) -> bool:
    names = [class_names(model.structure) for model in models]
    folded = [None if labels is None else sorted(fold(labels)) for labels in names]
    return any(labels != folded[0] for labels in folded) and all(labels is not None for labels in names)


def _base_models(given: ModelSet) -> tuple[ModelSet, frozenset[str]]:
    """Return the base models, and the tensors of a pooler that only some of them have, which are left out of all."""
    merged = given.map(base_model)
    poolers = [
        {name for name in model.tensors if name.startswith(f"{model.structure.prefix}.pooler.")}
        for model in merged.models
    ]
    if all(poolers):
        return merged, frozenset()
    pooler = frozenset().union(*poolers)
    return merged.map(lambda checkpoint: _without(checkpoint, pooler)), pooler


def _without(checkpoint: Checkpoint, names: Set[str]) -> Checkpoint:
    return replace(checkpoint, tensors={n: t for n, t in checkpoint.tensors.items() if n not in names})


def _pooler_notes(models: Sequence[Checkpoint], pooler: Set[str], policy: str) -> tuple[str, ...]:
    if not pooler:
        return ()
    without = ", ".join(model.source for model in models if not pooler & model.tensors.keys())
    rule = "is the first model's that has one" if policy == "drop" else "stays with the head"
    return (f"no pooler in {without}: it is not merged and {rule}",)


def _outside(model: Checkpoint, shared: Set[str]) -> list[str]:
    return sorted(name for name in model.tensors if name not in shared)


def _keep(plan: HeadPlan, k: int, folder: str) -> Output:
    """Return the output with the merged base model and all other tensors of model k."""
    shared, owner = plan.merged.reference.tensors.keys(), plan.given.models[k]
    numbers = range(len(plan.given.models))
    sources = {name: tuple((m, name) for m in numbers) if name in shared else ((k, name),) for name in owner.tensors}
    return Output(folder, owner, sources, frozenset(_outside(owner, shared)))


def _drop(plan: HeadPlan, pooler: Set[str]) -> HeadPlan:
    models, reference = plan.given.models, plan.given.reference
    sources = {name: tuple((m, name) for m in range(len(models))) for name in plan.merged.reference.tensors}
    having = next((k for k, model in enumerate(models) if pooler & model.tensors.keys()), 0)
    sources |= {name: ((having, name),) for name in models[having].tensors if name in pooler}
    left = [
        f"left out of {m.source}: {some(names, NAMES_SHOWN)}" for m in models if (names := _outside(m, sources.keys()))
    ]
    files = pipeline_files(reference)
    left += [f"left out of {reference.source}: {some(files, NAMES_SHOWN)}"] if files else []
    output = Output("", base_model(reference), sources, frozenset(pooler))
    carried = tuple(map(base_model, models)) if pooler else plan.merged.models
    return replace(plan, outputs=(output,), carried=carried, notes=(*plan.notes, *left))


def _average(plan: HeadPlan) -> HeadPlan:
    """Return the plan of an average over classes by name, for models whose classes differ."""
    models, reference = plan.given.models, plan.given.reference
    labels = [class_names(model.structure) or () for model in models]
    faults = [
        f"architectures differ: {reference.source} is {reference.architecture}, {other.source} is {other.architecture}. "
        "Heads of one class can be averaged; else --heads reference, drop or keep-all."
        for other in models[1:]
        if other.architecture != reference.architecture
    ]
    faults += [
        f"{model.source}: a label occurs twice in id2label: {', '.join(names)}."
        for model, names in zip(models, labels, strict=True)
        if len(set(fold(names))) < len(names)
    ]
    labelled = frozenset(name for model in models for name in label_tensors(model))
    for other in models[1:] if not faults else ():
        faults += _head_faults(reference, other, plan.merged.reference.tensors.keys(), labelled)
    rows = tuple(
        tuple(keys.index(name) if name in keys else -1 for name in fold(labels[0])) for keys in map(fold, labels)
    )
    sources = {name: tuple((m, name) for m in range(len(models))) for name in reference.tensors}
    output = Output("", reference, sources, frozenset(), labelled, rows)
    cast = [
        f"{name} is {other.tensors[name].dtype} in {other.source}, {reference.tensors[name].dtype} in {reference.source}"
        for other in models[1:]
        for name in _outside(reference, plan.merged.reference.tensors.keys())
        if name in other.tensors and other.tensors[name].dtype != reference.tensors[name].dtype
    ]
    notes = (*plan.notes, *_label_notes(models, labels), *cast)
    return replace(plan, outputs=(output,), carried=models, faults=tuple(faults), notes=notes)


def _head_faults(a: Checkpoint, b: Checkpoint, shared: Set[str], labelled: Set[str]) -> list[str]:
    """Return the faults of two heads that cannot be averaged; the number of rows of a classifier may differ."""
    of_a, of_b = _outside(a, shared), _outside(b, shared)
    faults = []
    if missing := [name for name in of_a if name not in b.tensors]:
        faults.append(f"{b.source} lacks {some(missing, NAMES_SHOWN)} that {a.source} has.")
    if extra := [name for name in of_b if name not in a.tensors]:
        faults.append(f"{b.source} has {some(extra, NAMES_SHOWN)} that {a.source} lacks.")
    for name in of_a:
        if name not in b.tensors:
            continue
        skip = int(name in labelled)
        left, right = a.tensors[name].shape, b.tensors[name].shape
        if (len(left), left[skip:]) != (len(right), right[skip:]):
            faults.append(f"shapes differ: {name} is {left} in {a.source}, {right} in {b.source}.")
    return faults


def _label_notes(models: Sequence[Checkpoint], labels: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return notes on the classes that some models lack, and on those that are left out."""
    keys_of = [set(fold(names)) for names in labels]
    notes = []
    for name, key in zip(labels[0], fold(labels[0]), strict=True):
        having = [model.source for model, keys in zip(models, keys_of, strict=True) if key in keys]
        if len(having) < len(models):
            notes.append(f"class {name} comes from {' and '.join(having)} alone")
    for model, names in zip(models[1:], labels[1:], strict=True):
        if left := [name for name, key in zip(names, fold(names), strict=True) if key not in keys_of[0]]:
            notes.append(f"classes of {model.source} left out, which {models[0].source} has not: {', '.join(left)}")
    if any(map(is_generic, labels)):
        notes.append("labels carry placeholder names (LABEL_0, ...) and were taken to mean the same in every model")
    return tuple(notes)


def output_folders(sources: Sequence[str]) -> tuple[str, ...]:
    """Return a folder name for each model: the last part of its path or Hub id, numbered where two are equal."""
    folders: list[str] = []
    for source in sources:
        plain = Path(source).expanduser().name if Path(source).name not in ("", "..") else Path(source).resolve().name
        name, count = plain or "model", 1
        while name in folders:
            count += 1
            name = f"{plain or 'model'}-{count}"
        folders.append(name)
    return tuple(folders)
