"""The pre-flight of a merge: every fault that headers show, in one message, before a weight is read."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.labels import class_names, label_order
from merge.checkpoints.sentence_transformers import check_edited, compare_pipelines
from merge.checkpoints.settings import setting_differences
from merge.checkpoints.tokenizers.tokenizer import read_vocabulary
from merge.checkpoints.weights.arrays import DTYPES, ITEM_SIZES
from merge.checkpoints.weights.read import nbytes
from merge.errors import MismatchError, some
from merge.recipe.recipe import Recipe
from merge.run.plan.base_model import base_model
from merge.run.plan.heads import HeadPlan

# Folder -> tokens and normalizer of its tokenizer; None without one.
Vocabularies = Mapping[Path, Mapping[str, Any] | None]

LAYER_COUNTS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_hidden_groups"}
# The config entries that a head decides, and not the encoder.
HEAD_KEYS = {"architectures", "num_labels", "tie_word_embeddings", "is_decoder"}


@dataclass(frozen=True)
class Allowed:
    """What may differ between models that are merged.

    Attributes:
        dtype: the dtype that is written; the models' dtypes must agree when None.
        depth: whether the number of layers may differ, as layers are taken in slices.
        vocabulary: whether the tokens may differ, as one vocabulary is chosen.
        config: whether settings may differ that decide outputs, as the reference's are kept.
    """

    dtype: str | None = None
    depth: bool = False
    vocabulary: bool = False
    config: bool = False

    @classmethod
    def by(cls, recipe: Recipe) -> Allowed:
        """Return what a recipe allows to differ."""
        return cls(recipe.out_dtype, recipe.slices is not None, recipe.tokenizer is not None, recipe.config is not None)


def preflight(heads: HeadPlan, allowed: Allowed = Allowed(), output: Path | None = None) -> tuple[str, ...]:
    """Return notes, after checking that every model can be merged with the first, and measured from the base.

    Args:
        heads: the plan of the heads, with the models and the base.
        output: the folder that is written; its disk must have the space.
    Raises:
        MismatchError: all faults, one a line.
        CheckpointError: slices change the layers of a model that has a module which reads layers by their number.
    """
    models = heads.given.models
    for checkpoint in models if allowed.depth else ():
        check_edited(checkpoint)
    vocabularies, unreadable = _read_vocabularies(heads.given.all)
    faults: list[str] = []
    first, *others = models if heads.whole else heads.merged.models
    for other in others:
        faults += _compare(first, other, allowed, heads.whole, vocabularies)
    if heads.given.base is not None:
        faults += _compare_base(models[0], heads.given.base, allowed, heads.whole, vocabularies)
    notes, pipeline_faults = compare_pipelines(models, heads.policy, allowed.config)
    faults += [*pipeline_faults, *heads.faults, *unreadable]
    faults += [fault for checkpoint in heads.given.all for fault in _unmergeable(checkpoint)]
    if output is not None:
        faults += _space_faults(heads, allowed.dtype, output)
    if faults:
        raise MismatchError("\n".join(faults))
    kept = _config_notes(first, [*others, *([] if heads.given.base is None else [heads.given.base])], allowed)
    return (*_notes(heads.given.all, vocabularies), *heads.notes, *kept, *notes)


def _read_vocabularies(checkpoints: Sequence[Checkpoint]) -> tuple[Vocabularies, list[str]]:
    """Return folder -> vocabulary, each file read once, and a fault for each checkpoint whose tokenizer is malformed."""
    vocabularies: dict[Path, dict[str, Any] | None] = {}
    faults: dict[Path, str] = {}
    for folder in dict.fromkeys(checkpoint.folder for checkpoint in checkpoints):
        try:
            vocabularies[folder] = read_vocabulary(folder)
        except MismatchError as error:
            vocabularies[folder], faults[folder] = None, str(error)
    return vocabularies, [faults[c.folder] for c in checkpoints if c.folder in faults]


def _compare(a: Checkpoint, b: Checkpoint, allowed: Allowed, whole: bool, vocabularies: Vocabularies) -> list[str]:
    if (a.model_type, a.architecture) != (b.model_type, b.architecture):
        return [
            f"architectures differ: {a.source} is {a.architecture} ({a.model_type}), "
            f"{b.source} is {b.architecture} ({b.model_type}). Merge models of one architecture."
        ]
    may_differ = _may_differ(a, b, allowed) | (set() if whole else HEAD_KEYS - {"is_decoder"})
    faults = _config_faults(a, b, may_differ, allowed) + _label_faults(a, b)
    missing = sorted(set(a.tensors) - set(b.tensors))
    extra = sorted(set(b.tensors) - set(a.tensors))
    if missing and not allowed.depth:  # a plan of layers says itself what it takes from whom
        faults.append(
            f"{b.source} lacks {some(missing, separator='; ')} that {a.source} has.{_pooler_advice(a, missing)}"
        )
    if extra and not allowed.depth:
        faults.append(f"{b.source} has {some(extra, separator='; ')} that {a.source} lacks.{_pooler_advice(a, extra)}")
    faults += _shape_faults(a, b, allowed)
    mixed = [n for n in a.tensors if n in b.tensors and a.tensors[n].result_dtype != b.tensors[n].result_dtype]
    if mixed and allowed.dtype is None:
        n = mixed[0]
        faults.append(
            f"dtypes differ in {len(mixed)} tensors: {n} is {a.tensors[n].result_dtype} in {a.source}, "
            f"{b.tensors[n].result_dtype} in {b.source}. Say what to write: --out-dtype float32."
        )
    return faults + ([] if allowed.vocabulary else _vocabulary_faults(a, b, vocabularies))


def _pooler_advice(a: Checkpoint, names: Sequence[str]) -> str:
    """Say what to do where a base model was saved without its pooler, as models of sentences often are."""
    alone = not a.writes_prefix and all(".pooler." in name for name in names)
    return " To merge all else: --heads drop takes the pooler of the first model that has one." if alone else ""


def _compare_base(
    a: Checkpoint, base: Checkpoint, allowed: Allowed, whole: bool, vocabularies: Vocabularies
) -> list[str]:
    """Compare the base: of the models' family and sizes; its head may be another."""
    if a.model_type != base.model_type:
        return [
            f"base {base.source} is a {base.model_type} model, {a.source} a {a.model_type} model. "
            "Task vectors need the model that the others were fine-tuned from."
        ]
    faults = _config_faults(a, base, _may_differ(a, base, replace(allowed, depth=False)) | HEAD_KEYS, allowed)
    if a.architecture == base.architecture and whole:
        faults += _label_faults(a, base)
    faults += _shape_faults(*(a, base) if whole else (base_model(a), base_model(base)), allowed)
    return faults + ([] if allowed.vocabulary else _vocabulary_faults(a, base, vocabularies))


def _may_differ(a: Checkpoint, b: Checkpoint, allowed: Allowed) -> set[str]:
    """Return the config entries that need not agree: the number of layers in slices, the vocabulary if one is chosen."""
    keys = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"} if allowed.vocabulary else set()
    if allowed.depth:
        left, right = a.structure.settings, b.structure.settings
        listed = {k for k in a.structure.known if isinstance(left.get(k), list) and isinstance(right.get(k), list)}
        keys |= {*LAYER_COUNTS, *listed}
    return keys


def _shape_faults(a: Checkpoint, b: Checkpoint, allowed: Allowed) -> list[str]:
    rows = {a.canonical_name(name) for name in a.structure.vocabulary} if allowed.vocabulary else set()
    shapes = [n for n in a.tensors if n in b.tensors and n not in rows and a.tensors[n].shape != b.tensors[n].shape]
    if not shapes:
        return []
    differences = [f"{n} is {a.tensors[n].shape} in {a.source}, {b.tensors[n].shape} in {b.source}" for n in shapes]
    tables = {a.canonical_name(name) for name in a.structure.vocabulary}
    padded = set(shapes) <= tables and all(a.tensors[n].shape[1:] == b.tensors[n].shape[1:] for n in shapes)
    advice = (
        f"Their tables have rows for more tokens, or padding: --tokenizer reference keeps the rows of {a.source}, "
        "--tokenizer union all tokens."
        if padded
        else "Are these two models of the same size and vocabulary?"
    )
    return [f"shapes differ: {some(differences, separator='; ')}. {advice}"]


def _config_faults(a: Checkpoint, b: Checkpoint, may_differ: set[str], allowed: Allowed) -> list[str]:
    """Return a fault where settings differ that decide outputs, with the option that chooses between them."""
    if allowed.config or not (listed := _config_differences(a, b, may_differ)):
        return []
    alike = all(b.tensors[name].shape == tensor.shape for name, tensor in a.tensors.items() if name in b.tensors)
    advice = f" To keep those of {a.source}: --config reference." if alike else ""
    return [f"configs differ: {some(listed, separator='; ')}.{advice}"]


def _config_differences(a: Checkpoint, b: Checkpoint, may_differ: set[str]) -> list[str]:
    differences = setting_differences(a.structure, b.structure, may_differ)
    return [f"{key} is {left!r} in {a.source}, {right!r} in {b.source}" for key, left, right in differences]


def _config_notes(a: Checkpoint, others: Sequence[Checkpoint], allowed: Allowed) -> list[str]:
    """Return a note for each model whose settings differ where the reference's are kept."""
    notes = []
    for other in others if allowed.config else ():
        head = set() if a.architecture == other.architecture else HEAD_KEYS
        if listed := _config_differences(a, other, _may_differ(a, other, allowed) | head):
            notes.append(f"configs differ, and that of {a.source} is kept: {some(listed, separator='; ')}")
    return notes


def _label_faults(a: Checkpoint, b: Checkpoint) -> list[str]:
    left, right = class_names(a.structure), class_names(b.structure)
    if left is None or right is None:
        return []
    try:
        label_order(left, right, a.source, b.source)
    except MismatchError as error:
        return [str(error)]
    return []


def _vocabulary_faults(a: Checkpoint, b: Checkpoint, vocabularies: Vocabularies) -> list[str]:
    left, right = vocabularies[a.folder], vocabularies[b.folder]
    if left is None or right is None:  # none, or malformed, which is a fault of the checkpoint and not of the pair
        return []
    words = [vocabulary["vocab"] for vocabulary in (left, right)]
    if words[0] == words[1]:
        normalizers = [vocabulary.get("normalizer", "unknown") for vocabulary in (left, right)]
        if normalizers[0] == normalizers[1] or "unknown" in normalizers:
            return []
        return [f"tokenizers differ in their normalizer (lower-casing?): {a.source} and {b.source}."]
    moved = sum(words[0].get(w) != words[1].get(w) for w in words[0].keys() | words[1].keys())
    return [
        f"vocabularies differ: {moved} entries of {a.source} and {b.source} are in one alone, or elsewhere in the other. "
        "Rows of the embedding tables would mean different words. Choose one: --tokenizer union, reference or a model."
    ]


def _unmergeable(checkpoint: Checkpoint) -> list[str]:
    bad = [n for n, t in checkpoint.tensors.items() if not t.is_integer and t.dtype not in DTYPES]
    if not bad:
        return []
    dtype = checkpoint.tensors[bad[0]].dtype
    return [f"{checkpoint.source}: {some(bad, separator='; ')} stored as {dtype}, which cannot be merged."]


def _space_faults(heads: HeadPlan, dtype: str | None, output: Path) -> list[str]:
    written = [heads.given.models[m].tensors[n] for planned in heads.outputs for (m, n), *_ in planned.sources.values()]
    need = sum(
        nbytes(t.result_dtype, t.shape) if dtype is None or t.is_integer else t.elements * ITEM_SIZES[dtype]
        for t in written
    )
    parent = output.resolve().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if need > free:
        return [f"the disk of {output} has {free / 1e9:.1f} GB free; the merge needs {need / 1e9:.1f} GB."]
    return []


def _notes(checkpoints: Sequence[Checkpoint], vocabularies: Vocabularies) -> list[str]:
    notes = [note for c in checkpoints for note in c.notes]
    without = [c.source for c in checkpoints if vocabularies[c.folder] is None]
    if without and len(without) < len(checkpoints):
        notes.append(f"no tokenizer in {', '.join(without)}: their vocabulary could not be compared")
    return notes
