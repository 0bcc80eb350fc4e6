"""The pre-flight of a merge: every fault that headers show, in one message, before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.labels import class_names, label_order
from merge.checkpoints.modules import is_module_tensor
from merge.checkpoints.names.canonical import expected_names, lacking_weights
from merge.checkpoints.sentence_transformers import check_edited, compare_pipelines
from merge.checkpoints.settings import setting_differences
from merge.checkpoints.tokenizers.comparison import (
    TokenizerOf,
    beyond_table,
    compare_tokenizers,
    double_ids,
    tokenizer_of,
)
from merge.checkpoints.weights.arrays import DTYPES, ITEM_SIZES
from merge.checkpoints.weights.read import nbytes
from merge.disk.staging import space_fault
from merge.errors import CheckpointError, MismatchError, some
from merge.recipe.recipe import Recipe
from merge.run.plan.base_model import base_model
from merge.run.plan.heads import HeadPlan
from merge.run.plan.kept_settings import reading_notes

# Folder -> its tokenizer; None without one.
Tokenizers = Mapping[Path, TokenizerOf | None]

LAYER_COUNTS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_hidden_groups"}
# The config entries that a head decides, and not the encoder.
HEAD_KEYS = {"architectures", "num_labels", "tie_word_embeddings", "is_decoder"}

EXTRAS_DROPPED = "{architecture} has no such tensors: --extra-tensors drop leaves them out."


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
    tokenizers, unreadable = _read_tokenizers(heads.given.all)
    faults: list[str] = []
    said: list[str] = []
    first, *others = models if heads.whole else heads.merged.models
    for other in others:
        faults += _compare(first, other, allowed, heads.whole)
        if not allowed.vocabulary and first.architecture == other.architecture:
            faults += _vocabulary_faults(first, other, tokenizers, said)
    if heads.given.base is not None:
        faults += _compare_base(models[0], heads.given.base, allowed, heads.whole)
        if not allowed.vocabulary and models[0].model_type == heads.given.base.model_type:
            faults += _vocabulary_faults(models[0], heads.given.base, tokenizers, said)
    notes, pipeline_faults = compare_pipelines(models, heads.policy, allowed.config)
    faults += [*pipeline_faults, *heads.faults, *unreadable, *([] if allowed.depth else _lacking(heads))]
    faults += [fault for checkpoint in heads.given.all for fault in _unmergeable(checkpoint)]
    if output is not None:
        faults += _space_faults(heads, allowed.dtype, output)
    if faults:
        raise MismatchError("\n".join(faults))
    kept = _config_notes(first, [*others, *([] if heads.given.base is None else [heads.given.base])], allowed)
    reading = reading_notes(first, others)
    return (*_notes(heads.given.all, tokenizers), *dict.fromkeys(said), *heads.notes, *kept, *reading, *notes)


def _read_tokenizers(checkpoints: Sequence[Checkpoint]) -> tuple[Tokenizers, list[str]]:
    """Return folder -> tokenizer, and a fault for each checkpoint whose tokenizer is malformed."""
    tokenizers: dict[Path, TokenizerOf | None] = {}
    faults: dict[Path, str] = {}
    for checkpoint in {checkpoint.folder: checkpoint for checkpoint in checkpoints}.values():
        try:
            tokenizers[checkpoint.folder] = tokenizer_of(checkpoint.source, checkpoint.folder, checkpoint.config)
        except (MismatchError, CheckpointError) as error:
            tokenizers[checkpoint.folder], faults[checkpoint.folder] = None, str(error)
    return tokenizers, [faults[c.folder] for c in checkpoints if c.folder in faults]


def _compare(a: Checkpoint, b: Checkpoint, allowed: Allowed, whole: bool) -> list[str]:
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
        faults.append(f"{b.source} lacks {some(missing, separator='; ')} that {a.source} has.{_advice_on(a, missing)}")
    if extra and not allowed.depth:
        faults.append(f"{b.source} has {some(extra, separator='; ')} that {a.source} lacks.{_advice_on(a, extra)}")
    faults += _shape_faults(a, b, allowed)
    mixed = [n for n in a.tensors if n in b.tensors and a.tensors[n].result_dtype != b.tensors[n].result_dtype]
    if mixed and allowed.dtype is None:
        n = mixed[0]
        faults.append(
            f"dtypes differ in {len(mixed)} tensors: {n} is {a.tensors[n].result_dtype} in {a.source}, "
            f"{b.tensors[n].result_dtype} in {b.source}. Say what to write: --out-dtype float32."
        )
    return faults


def _advice_on(a: Checkpoint, names: Sequence[str]) -> str:
    """Say what to do where a base model was saved without its pooler, as models of sentences often are, or extras are kept."""
    if _are_extra(a, names):
        return f" {EXTRAS_DROPPED.format(architecture=a.architecture)}"
    alone = not a.writes_prefix and all(".pooler." in name for name in names)
    return " To merge all else: --heads drop takes the pooler of the first model that has one." if alone else ""


def _are_extra(a: Checkpoint, names: Sequence[str]) -> bool:
    known = expected_names(a.structure)
    return not any(name in known or is_module_tensor(name) for name in names)


def _compare_base(a: Checkpoint, base: Checkpoint, allowed: Allowed, whole: bool) -> list[str]:
    """Compare the base: of the models' family and sizes; its head may be another."""
    if a.model_type != base.model_type:
        return [
            f"base {base.source} is a {base.model_type} model, {a.source} a {a.model_type} model. "
            "Task vectors need the model that the others were fine-tuned from."
        ]
    faults = _config_faults(a, base, _may_differ(a, base, replace(allowed, depth=False)) | HEAD_KEYS, allowed)
    if a.architecture == base.architecture and whole:
        faults += _label_faults(a, base)
    return faults + _shape_faults(*(a, base) if whole else (base_model(a), base_model(base)), allowed)


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
    if _are_extra(a, shapes):
        advice = EXTRAS_DROPPED.format(architecture=a.architecture)
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


def _vocabulary_faults(a: Checkpoint, b: Checkpoint, tokenizers: Tokenizers, notes: list[str]) -> list[str]:
    left, right = tokenizers[a.folder], tokenizers[b.folder]
    if left is None or right is None:  # none, or malformed, which is a fault of the checkpoint and not of the pair
        return []
    faults, said = compare_tokenizers(left, right)
    notes += said
    return faults


def _lacking(heads: HeadPlan) -> list[str]:
    """Return a fault for each folder that would lack weights of its class: from_pretrained makes random numbers of them."""
    faults = []
    for output in heads.outputs:
        owner = output.owner
        lacking = lacking_weights(owner.structure, output.sources.keys())
        if lacking and not any(stored.converted for stored in owner.tensors.values()):
            faults.append(
                f"{owner.source} lacks {len(lacking)} weights of its class {owner.architecture}, which from_pretrained would "
                f"fill with random numbers: {some([owner.written_name(n) for n in lacking])}.{_holds(owner)}"
            )
    return faults


def _holds(owner: Checkpoint) -> str:
    known = expected_names(owner.structure)
    held = {**owner.encoder.tensors, **owner.extra}
    foreign = [stored.stored_name for name, stored in held.items() if name not in known]
    if not foreign:
        return ""
    first = some(foreign, 2)
    return f" It holds other tensors, such as {first}: was it saved from another class, or through a wrapper?"


def _unmergeable(checkpoint: Checkpoint) -> list[str]:
    held = {**checkpoint.tensors, **checkpoint.extra}  # extra ones are the scales of quantised weights
    bad = [n for n, t in held.items() if not t.is_integer and t.dtype not in DTYPES]
    if not bad:
        return []
    dtype = held[bad[0]].dtype
    return [f"{checkpoint.source}: {some(bad, separator='; ')} stored as {dtype}, which cannot be merged."]


def _space_faults(heads: HeadPlan, dtype: str | None, output: Path) -> list[str]:
    written = [heads.given.models[m].tensors[n] for planned in heads.outputs for (m, n), *_ in planned.sources.values()]
    need = sum(
        nbytes(t.result_dtype, t.shape) if dtype is None or t.is_integer else t.elements * ITEM_SIZES[dtype]
        for t in written
    )
    fault = space_fault(output, need)
    return [fault] if fault else []


def _notes(checkpoints: Sequence[Checkpoint], tokenizers: Tokenizers) -> list[str]:
    notes = [note for c in checkpoints for note in c.notes]
    without = [c.source for c in checkpoints if tokenizers[c.folder] is None]
    if without and len(without) < len(checkpoints):
        notes.append(f"no tokenizer in {', '.join(without)}: their vocabulary could not be compared")
        if checkpoints[0].source in without:
            held = next(c.source for c in checkpoints if c.source not in without)
            notes.append(
                f"the merge has no tokenizer, as {checkpoints[0].source} has none. If the vocabulary is that of {held}, put "
                "its tokenizer files into the merge"
            )
    for checkpoint in {c.folder: c for c in checkpoints}.values():
        tokenizer, rows = tokenizers[checkpoint.folder], checkpoint.structure.settings.get("vocab_size")
        if tokenizer is not None:
            notes += [*double_ids(tokenizer), *(beyond_table(tokenizer, rows) if isinstance(rows, int) else ())]
    return notes
