"""The part of a calibration text on which candidates are told apart first, where models and text are large."""

from __future__ import annotations

from dataclasses import replace

from merge.alignment.midpoint import FEATURES, MIN_TEXTS
from merge.alignment.pair import Pair

# Parameters times tokens of a run over the whole text; below, all of the text is read for every candidate.
LARGE_RUN = 4e11
# A part is one text in so many, or more: it has at least so many tokens, or MIN_TEXTS where each text has one score.
ONE_IN, PART_TOKENS = 4, 2048


def count_texts(pair: Pair) -> int:
    """Return how many texts the pair has."""
    return sum(len(next(iter(batch.values()))) for batch in pair.batches)


def part_of_text(pair: Pair) -> Pair | None:
    """Return the pair with one text in a few, of every length; None where runs are cheap, or the text is small.

    The scores of models that are compared by tokens need fewer texts than those of classifiers.
    """
    sizes = [len(next(iter(batch.values()))) for batch in pair.batches]
    shared = all(
        len(tensor) == size for batch, size in zip(pair.batches, sizes, strict=True) for tensor in batch.values()
    )
    if not shared or any("input_ids" not in batch for batch in pair.batches):
        return None
    tokens = sum(batch["input_ids"].numel() for batch in pair.batches)
    if tokens * sum(tensor.numel() for tensor in pair.a.values()) < LARGE_RUN:
        return None
    by_token = bool(pair.text.scored) or any(name in FEATURES for name in pair.spec.outputs)
    step = min(ONE_IN, tokens // PART_TOKENS if by_token else sum(sizes) // MIN_TEXTS)
    if step < 2:
        return None
    first, batches, scored = 0, [], []
    for k, (batch, size) in enumerate(zip(pair.batches, sizes, strict=True)):
        begin = -first % step  # texts are counted over all batches
        first += size
        if begin >= size:
            continue
        batches.append({name: tensor[begin::step] for name, tensor in batch.items()})
        if pair.text.scored:
            scored.append(pair.text.scored[k][begin::step])
    return replace(pair, batches=tuple(batches), text=replace(pair.text, scored=tuple(scored)))
