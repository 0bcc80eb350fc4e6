"""Pre-flight: everything that can be wrong with a merge, found from headers before a weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merge.checkpoint import Checkpoint
from merge.errors import MismatchError
from merge.model import model_config

# Config entries that neither shape the model nor change what it computes at inference.
HARMLESS = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id", "problem_type",
    "finetuning_task", "use_cache", "gradient_checkpointing", "return_dict", "output_attentions",
    "output_hidden_states", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
    "initializer_range", "task_specific_params", "_commit_hash", "_attn_implementation",
}  # fmt: skip

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def preflight(
    checkpoints: Sequence[Checkpoint], dtype: str | None = None, output: Path | None = None
) -> tuple[str, ...]:
    """Return notes, after checking that every checkpoint can be merged with the first.

    Raises:
        MismatchError: the faults of all of them, one a line.
    """
    faults: list[str] = []
    reference = checkpoints[0]
    for other in checkpoints[1:]:
        faults += _compare(reference, other, dtype)
    faults += [fault for checkpoint in checkpoints for fault in _unmergeable(checkpoint)]
    if output is not None:
        faults += _space(reference, dtype, output)
    if faults:
        raise MismatchError("\n".join(faults))
    return tuple(_notes(checkpoints))


def _compare(a: Checkpoint, b: Checkpoint, dtype: str | None) -> list[str]:
    if (a.model_type, a.architecture) != (b.model_type, b.architecture):
        return [
            f"architectures differ: {a.source} is {a.architecture} ({a.model_type}), "
            f"{b.source} is {b.architecture} ({b.model_type}). Merge models of one architecture."
        ]
    faults = _config_faults(a, b)
    missing = sorted(set(a.tensors) - set(b.tensors))
    extra = sorted(set(b.tensors) - set(a.tensors))
    shared = [name for name in a.tensors if name in b.tensors]
    shapes = [n for n in shared if a.tensors[n].shape != b.tensors[n].shape]
    if missing:
        faults.append(f"{b.source} lacks {_some(missing)} that {a.source} has.")
    if extra:
        faults.append(f"{b.source} has {_some(extra)} that {a.source} lacks.")
    if shapes:
        said = [f"{n} is {a.tensors[n].shape} in {a.source}, {b.tensors[n].shape} in {b.source}" for n in shapes]
        faults.append(f"shapes differ: {_some(said)}. Are these two models of the same size and vocabulary?")
    mixed = [n for n in shared if a.tensors[n].dtype != b.tensors[n].dtype]
    if mixed and dtype is None:
        n = mixed[0]
        faults.append(
            f"dtypes differ in {len(mixed)} tensors: {n} is {a.tensors[n].dtype} in {a.source}, "
            f"{b.tensors[n].dtype} in {b.source}. Say what to write: --dtype float32."
        )
    return faults + _vocabulary_faults(a, b)


def _config_faults(a: Checkpoint, b: Checkpoint) -> list[str]:
    left, right = (model_config(c.config).to_dict() for c in (a, b))
    keys = [k for k in sorted(set(left) | set(right)) if k not in HARMLESS and left.get(k) != right.get(k)]
    said = [f"{k} is {left.get(k)!r} in {a.source}, {right.get(k)!r} in {b.source}" for k in keys]
    return [f"configs differ: {_some(said)}."] if said else []


def _vocabulary_faults(a: Checkpoint, b: Checkpoint) -> list[str]:
    left, right = (read_vocabulary(c.folder) for c in (a, b))
    if left is None or right is None or left == right:
        return []
    words = [{k: v for k, v in part.items() if k != "normalizer"} for part in (left, right)]
    if words[0] == words[1]:
        return [f"tokenizers differ in their normalizer (lower-casing?): {a.source} and {b.source}."]
    moved = sum(1 for w, i in left["vocab"].items() if right["vocab"].get(w) != i)
    return [
        f"vocabularies differ: {moved} of {len(left['vocab'])} entries of {a.source} are absent or elsewhere in "
        f"{b.source}. Rows of the embedding tables would mean different words."
    ]


def read_vocabulary(folder: Path) -> dict[str, Any] | None:
    """Return token -> id and the normalizer of a checkpoint's tokenizer; None when it has none that can be read here."""
    if (folder / "tokenizer.json").is_file():
        stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocab = stored["model"].get("vocab")
        entries = {w: i for i, (w, *_) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab or {})
        return {"vocab": entries, "normalizer": stored.get("normalizer")}
    if (folder / "vocab.txt").is_file():
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        return {"vocab": {word: i for i, word in enumerate(lines)}, "normalizer": None}
    return None


def _unmergeable(checkpoint: Checkpoint) -> list[str]:
    bad = [n for n, t in checkpoint.tensors.items() if not t.is_integer and t.dtype not in DTYPES]
    return (
        [f"{checkpoint.source}: {_some(bad)} stored as {checkpoint.tensors[bad[0]].dtype}, which cannot be merged."]
        if bad
        else []
    )


def _space(reference: Checkpoint, dtype: str | None, output: Path) -> list[str]:
    need = sum(max(t.nbytes, 0) for t in reference.tensors.values()) * (2 if dtype in ("float32", "float64") else 1)
    parent = output.resolve().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if need > free:
        return [f"the disk of {output} has {free / 1e9:.1f} GB free; the merge needs {need / 1e9:.1f} GB."]
    return []


def _notes(checkpoints: Sequence[Checkpoint]) -> list[str]:
    notes = [note for c in checkpoints for note in c.notes]
    reference = checkpoints[0]
    if reference.left_behind:
        notes.append(f"not copied from {reference.source}: {', '.join(reference.left_behind)}")
    without = [c.source for c in checkpoints if read_vocabulary(c.folder) is None]
    if without and len(without) < len(checkpoints):
        notes.append(f"no tokenizer in {', '.join(without)}: their vocabulary could not be compared")
    return notes


def _some(items: Sequence[str], most: int = 3) -> str:
    shown = "; ".join(items[:most])
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown


def merged_config(reference: Checkpoint, dtype: str | None) -> Mapping[str, Any]:
    """Return the reference's config as it is written for the merged model: only the dtype may change."""
    config = {k: v for k, v in reference.config.items() if k not in ("dtype", "torch_dtype")}
    found = {t.dtype for t in reference.tensors.values() if not t.is_integer}
    stated = dtype or (DTYPES[found.pop()] if len(found) == 1 else reference.config.get("dtype"))
    return config | ({"dtype": stated} if stated else {})
