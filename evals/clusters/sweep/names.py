"""The models of a sweep: short names that differ, and which of them are the same model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.model_set import same_tensors
from merge.checkpoints.settings import setting_differences

# The folders that transformers' Trainer writes; the folder above names the run.
STEP = re.compile(r"checkpoint-\d+")
HASH_DIGITS = 8  # of the content, behind a name that nothing else tells apart


def short_names(checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Return a name for each model, all different: the end of its path, as long as it must be; a Hub id as it is."""
    paths = [_parts(checkpoint) for checkpoint in checkpoints]
    lengths = [2 if STEP.fullmatch(parts[-1]) else 1 for parts in paths]
    while True:
        names = ["/".join(parts[-length:]) for parts, length in zip(paths, lengths, strict=True)]
        counts = Counter(names)
        longer = [
            length + 1 if counts[name] > 1 and length < len(parts) else length
            for name, parts, length in zip(names, paths, lengths, strict=True)
        ]
        if longer == lengths:
            break
        lengths = longer
    return tuple(
        f"{name} ({checkpoint.content_hash[:HASH_DIGITS]})" if counts[name] > 1 else name
        for name, checkpoint in zip(names, checkpoints, strict=True)
    )


def _parts(checkpoint: Checkpoint) -> tuple[str, ...]:
    if checkpoint.commit is not None:  # from the Hub
        return (checkpoint.source,)
    path = Path(checkpoint.source)
    if ".." in path.parts or path.name == "":
        path = path.expanduser().resolve()
    return tuple(part for part in path.parts if part != "/") or (checkpoint.source,)


def different_models(checkpoints: Sequence[Checkpoint]) -> tuple[list[Checkpoint], list[str]]:
    """Return each model once, by its content (weights, settings and labels), and a note for each that is left out."""
    kept: list[Checkpoint] = []
    notes = []
    for checkpoint in checkpoints:
        twin = next((earlier for earlier in kept if _same(earlier, checkpoint)), None)
        if twin is None:
            kept.append(checkpoint)
            continue
        same_folder = twin.folder.resolve() == checkpoint.folder.resolve()
        what = "is given twice" if same_folder else f"is the same model as {twin.source}, in every tensor"
        notes.append(f"{checkpoint.source} {what}: it is counted once")
    return kept, notes


def _same(a: Checkpoint, b: Checkpoint) -> bool:
    if a.folder.resolve() == b.folder.resolve():
        return True
    alike = a.architecture == b.architecture and a.structure.label_names == b.structure.label_names
    if not alike or a.fingerprint != b.fingerprint:
        return False
    return not setting_differences(a.structure, b.structure) and same_tensors(a, b)
