"""Kept settings: what decides no logit, differs between models, and is the reference's in the result; each is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.config_file import position_limit
from merge.disk.documents import read_object
from merge.errors import CheckpointError, some

LONGEST = "the longest text (model_max_length)"
SAID = (LONGEST, "truncation_side")
UNBOUNDED = 10**6  # tokens; tokenizers without a limit state a larger number
SEVERAL = "multi_label_classification"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_KINDS = {"model_max_length": "a number", "truncation_side": "text"}


def reading_notes(first: Checkpoint, others: Sequence[Checkpoint]) -> list[str]:
    """Return a note for each model that reads long texts, or turns logits into scores, otherwise than the reference."""
    notes = []
    for other in others:
        if other.folder == first.folder:
            continue
        listed = [
            f"{key} is {left!r} in {first.source}, {right!r} in {other.source}"
            for key, left, right in _differences(first, other)
        ]
        if listed:
            notes.append(f"the result has the settings of {first.source}: {some(listed, separator='; ')}")
    return notes


def _differences(a: Checkpoint, b: Checkpoint) -> Iterator[tuple[str, Any, Any]]:
    """Yield (setting, its value in a, in b) of those that differ."""
    if "id2label" in a.config and "id2label" in b.config:
        left, right = a.config.get("problem_type"), b.config.get("problem_type")
        if (left == SEVERAL) is not (right == SEVERAL):  # by which pipelines take a sigmoid, or a softmax
            yield "problem_type", left, right
    reading = _reading(a), _reading(b)
    for key in SAID:
        of_pipelines = a.modules is not None and b.modules is not None  # whose longest texts are compared with all else
        if None in reading or (of_pipelines and key == LONGEST):
            continue
        left, right = ((settings or {})[key] for settings in reading)
        if left != right:
            yield key, left, right


def _reading(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return what is read of a long text: how many tokens, by the tokenizer's limit and the model's positions, from where."""
    path = checkpoint.folder / TOKENIZER_CONFIG
    if not path.is_file():
        return None
    stated = read_object(path, CheckpointError, TOKENIZER_KINDS)
    limits = (stated.get("model_max_length"), position_limit(checkpoint.config))
    longest = min((int(n) for n in limits if isinstance(n, int | float) and 0 < n < UNBOUNDED), default=None)
    return {LONGEST: longest, "truncation_side": stated.get("truncation_side") or "right"}
