"""Head plan: which tensors of the models are merged, which go along with one model's head, and which folders come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.labels import class_names, fold, is_generic
from merge.checkpoints.sentence_transformers import pipeline_files
from merge.checkpoints.structure import Structure, structure_of, transformers_build
from merge.disk.cache import cache_key, read_cached, write_cached
from merge.errors import MismatchError

POLICIES = ("average", "reference", "drop", "keep-all")


@dataclass(frozen=True)
class Output:
    """One folder that a merge writes.

    Attributes:
        folder: inside the output, "" for the output itself.
        owner: the model whose class, config and side files it has.
        sources: canonical name -> (model, name there) for each model that has a part in it.
        copied: the names that one model gives and nothing is merged into.
        rows: for each model its row for each class of the result, for the tensors in `labelled`.
    """

    folder: str
    owner: Checkpoint
    sources: Mapping[str, tuple[tuple[int, str], ...]]
    copied: frozenset[str] = frozenset()
    labelled: frozenset[str] = frozenset()
    rows: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class HeadPlan:
    """What is merged, what is copied, and which folders come of it.

    Attributes:
        models: the models, as they were opened.
        merged: what is compared and aligned of them: all of it, or their base models alone.
        base: the same of the base.
        outputs: the folders; one but for keep-all.
        whole: whether models are compared and aligned with their heads on.
        carried: what of each model is brought into the reference's basis: what is merged, and what goes along with it.
        faults: what stands against it; to be raised with all others.
        notes: what is left out or taken from one model.
    """

    models: tuple[Checkpoint, ...]
    merged: tuple[Checkpoint, ...]
    base: Checkpoint | None
    carried: tuple[Checkpoint, ...]
    outputs: tuple[Output, ...]
    whole: bool = False
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def plan_heads(policy: str | None, models: Sequence[Checkpoint], base: Checkpoint | None = None) -> HeadPlan:
    """Return what a policy makes of the models' heads; from headers alone.

    None merges whole models, whose labels must be the same. `average` has the labels of the first model and averages each
    class over the models that have it. `reference`, `drop` and `keep-all` merge the base models alone; around them goes the
    first model's head, none, or each model's own in a folder of its own.

    Raises:
        MismatchError: a model has no base model that could be told apart.
    """
    if policy is None or (policy == "average" and not _labels_differ(models)):
        sources = {name: tuple((m, name) for m in range(len(models))) for name in models[0].tensors}
        plain = tuple(model.encoder for model in models)
        own_base = None if base is None else base.encoder
        return HeadPlan(tuple(models), plain, own_base, tuple(models), (Output("", models[0], sources),), whole=True)
    merged, pooler = _encoders(models)
    own_base = None if base is None else encoder_of(base)
    if own_base is not None and pooler:
        own_base = _without(own_base, pooler)
    plan = HeadPlan(tuple(models), merged, own_base, merged, (), notes=_pooler_notes(models, pooler, policy))
    if policy == "average":
        return _average(plan)
    if policy == "drop":
        return _drop(plan, pooler)
    shared = merged[0].tensors.keys()
    if policy == "reference":
        left = [f"left out of {m.source}: {_listed(_outside(m, shared))}" for m in models[1:] if _outside(m, shared)]
        own = _outside(models[0], shared)
        taken = [f"taken from {models[0].source} alone: {_listed(own)}"] if own else []
        return replace(plan, outputs=(_keep(plan, 0, ""),), notes=(*plan.notes, *taken, *left))
    folders = output_folders([model.source for model in models])
    outputs = tuple(_keep(plan, k, folder) for k, folder in enumerate(folders))
    said = tuple(f"{folder}/ has the head of {model.source}" for folder, model in zip(folders, models, strict=True))
    return replace(plan, outputs=outputs, carried=plan.models, notes=(*plan.notes, *said))


def _labels_differ(models: Sequence[Checkpoint]) -> bool:
    names = [class_names(model.structure) for model in models]
    folded = [None if one is None else sorted(fold(one)) for one in names]
    return any(one != folded[0] for one in folded) and all(one is not None for one in names)


def _encoders(models: Sequence[Checkpoint]) -> tuple[tuple[Checkpoint, ...], frozenset[str]]:
    """Return the base models, and the tensors of a pooler that only some of them have, which are left out of all."""
    merged = tuple(encoder_of(model) for model in models)
    poolers = [
        {name for name in model.tensors if name.startswith(f"{model.structure.prefix}.pooler.")} for model in merged
    ]
    if all(poolers):
        return merged, frozenset()
    some = frozenset().union(*poolers)
    return tuple(_without(model, some) for model in merged), some


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


def _listed(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _keep(plan: HeadPlan, k: int, folder: str) -> Output:
    """Return the output that has the merged base model and everything else of model k."""
    shared = plan.merged[0].tensors.keys()
    everyone = range(len(plan.models))
    sources = {
        name: tuple((m, name) for m in everyone) if name in shared else ((k, name),) for name in plan.models[k].tensors
    }
    return Output(folder, plan.models[k], sources, frozenset(_outside(plan.models[k], shared)))


def _drop(plan: HeadPlan, pooler: Set[str]) -> HeadPlan:
    sources = {name: tuple((m, name) for m in range(len(plan.models))) for name in plan.merged[0].tensors}
    having = next((k for k, model in enumerate(plan.models) if pooler & model.tensors.keys()), 0)
    sources |= {name: ((having, name),) for name in plan.models[having].tensors if name in pooler}
    left = [f"left out of {m.source}: {_listed(names)}" for m in plan.models if (names := _outside(m, sources.keys()))]
    files = pipeline_files(plan.models[0])
    left += [f"left out of {plan.models[0].source}: {_listed(files)}"] if files else []
    own = Output("", encoder_of(plan.models[0]), sources, frozenset(pooler))
    carried = tuple(map(encoder_of, plan.models)) if pooler else plan.merged
    return replace(plan, outputs=(own,), carried=carried, notes=(*plan.notes, *left))


def _average(plan: HeadPlan) -> HeadPlan:
    """Return the plan of an average over classes by name, for models whose classes differ."""
    models, reference = plan.models, plan.models[0]
    labels = [class_names(model.structure) or () for model in models]
    faults = [
        f"architectures differ: {reference.source} is {reference.architecture}, {other.source} is {other.architecture}. "
        "Heads of one class can be averaged; else --heads reference, drop or keep-all."
        for other in models[1:]
        if other.architecture != reference.architecture
    ]
    faults += [
        f"{model.source}: a label stands twice in id2label: {', '.join(names)}."
        for model, names in zip(models, labels, strict=True)
        if len(set(fold(names))) < len(names)
    ]
    labelled = frozenset(name for model in models for name in label_tensors(model))
    for other in models[1:] if not faults else ():
        faults += _head_faults(reference, other, plan.merged[0].tensors.keys(), labelled)
    rows = tuple(tuple(own.index(name) if name in own else -1 for name in fold(labels[0])) for own in map(fold, labels))
    sources = {name: tuple((m, name) for m in range(len(models))) for name in reference.tensors}
    output = Output("", reference, sources, frozenset(), labelled, rows)
    cast = [
        f"{name} is {other.tensors[name].dtype} in {other.source}, {reference.tensors[name].dtype} in {reference.source}"
        for other in models[1:]
        for name in _outside(reference, plan.merged[0].tensors.keys())
        if name in other.tensors and other.tensors[name].dtype != reference.tensors[name].dtype
    ]
    notes = (*plan.notes, *_label_notes(models, labels), *cast)
    return replace(plan, outputs=(output,), carried=models, faults=tuple(faults), notes=notes)


def _head_faults(a: Checkpoint, b: Checkpoint, shared: Set[str], labelled: Set[str]) -> list[str]:
    """Compare what lies outside the base model; the number of rows of a classifier may differ."""
    own, other = _outside(a, shared), _outside(b, shared)
    faults = []
    if missing := [name for name in own if name not in b.tensors]:
        faults.append(f"{b.source} lacks {_listed(missing)} that {a.source} has.")
    if extra := [name for name in other if name not in a.tensors]:
        faults.append(f"{b.source} has {_listed(extra)} that {a.source} lacks.")
    for name in own:
        if name not in b.tensors:
            continue
        skip = int(name in labelled)
        left, right = a.tensors[name].shape, b.tensors[name].shape
        if (len(left), left[skip:]) != (len(right), right[skip:]):
            faults.append(f"shapes differ: {name} is {left} in {a.source}, {right} in {b.source}.")
    return faults


def _label_notes(models: Sequence[Checkpoint], labels: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return which classes are whose, and which are left out."""
    own = [set(fold(names)) for names in labels]
    notes = []
    for name, key in zip(labels[0], fold(labels[0]), strict=True):
        having = [model.source for model, keys in zip(models, own, strict=True) if key in keys]
        if len(having) < len(models):
            notes.append(f"class {name} comes from {' and '.join(having)} alone")
    for model, names in zip(models[1:], labels[1:], strict=True):
        if left := [name for name, key in zip(names, fold(names), strict=True) if key not in own[0]]:
            notes.append(f"classes of {model.source} left out, which {models[0].source} has not: {', '.join(left)}")
    if any(map(is_generic, labels)):
        notes.append("labels carry placeholder names (LABEL_0, ...) and were taken to mean the same in every model")
    return tuple(notes)


def output_folders(sources: Sequence[str]) -> tuple[str, ...]:
    """Return a folder name for each model: the last part of its path or Hub id, numbered where it stands twice."""
    folders: list[str] = []
    for source in sources:
        plain = Path(source).expanduser().name if Path(source).name not in ("", "..") else Path(source).resolve().name
        name, count = plain or "model", 1
        while name in folders:
            count += 1
            name = f"{plain or 'model'}-{count}"
        folders.append(name)
    return tuple(folders)


# What a config says of a head, and a bare base model has no use for.
LABEL_KEYS = {"id2label", "label2id", "num_labels", "problem_type"}


CROSS_ENCODER_KEYS = {"sentence_transformers", "sbert_ce_default_activation_function"}


def label_tensors(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the canonical names of the tensors that have one row per class: those that grow with one class more."""
    names = class_names(checkpoint.structure)
    if names is None:
        return frozenset()
    more = [*names, "one more"]
    labels = {"id2label": {str(i): name for i, name in enumerate(more)}, "label2id": {n: i for i, n in enumerate(more)}}
    config = {key: value for key, value in checkpoint.config.items() if key not in LABEL_KEYS}
    grown = structure_of(config | labels).shapes
    found = {name for name, shape in checkpoint.structure.shapes.items() if grown[name] != shape}
    return frozenset(checkpoint.canonical_name(name) for name in found) & checkpoint.tensors.keys()


def consistent_labels(config: Mapping[str, Any], structure: Structure) -> dict[str, Any]:
    """Return a config whose num_labels and label2id say what its id2label says; unchanged where it names no class."""
    names = class_names(structure)
    if names is None or not {"id2label", "label2id"} & config.keys():
        return dict(config)
    labels = {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
    stale = {"num_labels"} if config.get("num_labels", len(names)) != len(names) else set()
    return {key: value for key, value in config.items() if key not in stale} | labels


def base_class(checkpoint: Checkpoint) -> str:
    """Return the class of the base model inside a checkpoint's class: BertModel for BertForSequenceClassification."""
    key = cache_key(transformers_build(), checkpoint.config)
    found = read_cached("base-classes", key)
    if not isinstance(found, str):
        from merge.checkpoints.transformers_model import meta_model

        found = type(meta_model(checkpoint.config).base_model).__name__
        write_cached("base-classes", key, found)
    return found


def encoder_of(checkpoint: Checkpoint) -> Checkpoint:
    """Return the base model inside a checkpoint as a checkpoint of its own: no head, no modules, no labels.

    Raises:
        MismatchError: the class has no base model that could be told apart from its head.
    """
    prefix = checkpoint.structure.prefix
    tensors = {name: t for name, t in checkpoint.tensors.items() if prefix and name.startswith(f"{prefix}.")}
    if not tensors:
        raise MismatchError(
            f"{checkpoint.source}: {checkpoint.architecture} holds no base model of its own, so what is its head cannot be "
            "told. Leave out --heads."
        )
    config = {k: v for k, v in checkpoint.config.items() if k not in LABEL_KEYS and k not in CROSS_ENCODER_KEYS}
    structure = structure_of(config | {"architectures": [base_class(checkpoint)]})
    writes_prefix = any(name.startswith(f"{prefix}.") for name in structure.shapes)
    pipeline = set(pipeline_files(checkpoint))
    side_files = tuple(name for name in checkpoint.side_files if name not in pipeline)
    return replace(checkpoint, structure=structure, tensors=tensors, writes_prefix=writes_prefix, side_files=side_files)
