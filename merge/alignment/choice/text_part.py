"""The parts of a calibration text on which candidates are told apart one after another, where models and text are large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from merge.alignment.divergence import FEATURES
from merge.alignment.midpoint import EndpointOutputs
from merge.alignment.pair import Pair

# Parameters times tokens of a run over the whole text; below, all of the text is read for every candidate.
LARGE_RUN = 4e11
# Parameters of a model over which matching its units again costs more than a run over a short text.
LARGE_MODEL = 5e7
# The first part is one text in so many, or more: it has at least so many texts, and so many tokens where they are compared.
ONE_IN, MIN_TEXTS, PART_TOKENS = 8, 32, 1024


@dataclass(frozen=True)
class TextPart:
    """A part of a pair's text.

    Attributes:
        pair: with this part alone.
        texts: number of a batch of the whole text -> those of its texts that are in the part.
    """

    pair: Pair
    texts: dict[int, slice]


def count_texts(pair: Pair) -> int:
    """Return how many texts the pair has."""
    return sum(_sizes(pair))


def _sizes(pair: Pair) -> list[int]:
    return [len(next(iter(batch.values()))) for batch in pair.batches]


def parts_of_text(pair: Pair) -> tuple[TextPart, ...]:
    """Return parts that together are the whole text: of every length one text in eight, another eighth, a quarter, a half.

    There are none where runs are cheap, or the text is small.
    """
    sizes = _sizes(pair)
    shared = all(
        len(tensor) == size for batch, size in zip(pair.batches, sizes, strict=True) for tensor in batch.values()
    )
    if not shared or any("input_ids" not in batch for batch in pair.batches):
        return ()
    tokens = sum(batch["input_ids"].numel() for batch in pair.batches)
    if tokens * _parameters(pair) < LARGE_RUN:
        return ()
    by_token = bool(pair.text.scored) or any(name in FEATURES for name in pair.spec.outputs)
    most = min(ONE_IN, sum(sizes) // MIN_TEXTS, tokens // PART_TOKENS if by_token else ONE_IN)
    step, parts = 1 << max(most, 1).bit_length() - 1, []
    if step < 2:
        return ()
    parts.append(_every(pair, sizes, 0, step))
    while step > 1:
        parts.append(_every(pair, sizes, step // 2, step))
        step //= 2
    return tuple(parts)


def parts_for_race(pair: Pair) -> tuple[TextPart, ...]:
    """Return the parts of the text; the whole as the only one where the model alone is large, none where neither is.

    Matching the units of a large model over every set of axes by every matcher costs as much on a short text as on a long one.
    """
    parts = parts_of_text(pair)
    if parts or not pair.batches or _parameters(pair) < LARGE_MODEL:
        return parts
    return (TextPart(pair, dict.fromkeys(range(len(pair.batches)), slice(None))),)


def _parameters(pair: Pair) -> int:
    return sum(tensor.numel() for tensor in pair.a.values())


def _every(pair: Pair, sizes: Sequence[int], first: int, step: int) -> TextPart:
    """Return one text in so many, counted over all batches, from this one on."""
    before, texts = 0, {}
    for k, size in enumerate(sizes):
        begin = (first - before) % step
        before += size
        if begin < size:
            texts[k] = slice(begin, None, step)
    batches = tuple({name: tensor[part] for name, tensor in pair.batches[k].items()} for k, part in texts.items())
    scored = tuple(pair.text.scored[k][part] for k, part in texts.items()) if pair.text.scored else ()
    return TextPart(replace(pair, batches=batches, text=replace(pair.text, scored=scored)), texts)


def outputs_on(part: TextPart, ends: EndpointOutputs) -> EndpointOutputs:
    """Return the outputs of the endpoints on a part of the text: of those on the whole where they are kept."""
    kept = [(ends.kept(k), texts) for k, texts in part.texts.items()]
    cut = [
        ({name: out[texts] for name, out in sides[0].items()}, {name: out[texts] for name, out in sides[1].items()})
        for sides, texts in kept
        if sides is not None
    ]
    return EndpointOutputs(part.pair, cut if len(cut) == len(kept) else None)


def join_outputs(ends: EndpointOutputs, parts: Sequence[TextPart], parts_ends: Sequence[EndpointOutputs]) -> None:
    """Add the outputs on parts of the text to those on the whole: as they are where the parts are all of it, else what notes say.

    Args:
        parts_ends: the outputs on the first of the parts.
    """
    for k in range(len(ends.pair.batches)):
        pieces = [
            (part.texts[k], each.kept(list(part.texts).index(k)))
            for part, each in zip(parts, parts_ends, strict=False)
            if k in part.texts
        ]
        whole = len(pieces) == sum(k in part.texts for part in parts)
        if ends.kept(k) is None and whole and all(sides is not None for _, sides in pieces):
            sides = [[(texts, sides[side]) for texts, sides in pieces if sides is not None] for side in (0, 1)]
            ends.keep(k, *(_interleaved(each, len(next(iter(ends.pair.batches[k].values())))) for each in sides))
    ends.add_shares(parts_ends)


def _interleaved(pieces: Sequence[tuple[slice, Mapping[str, Tensor]]], count: int) -> dict[str, Tensor]:
    """Return outputs by name of which every piece has some of the texts."""
    joined = {name: out.new_empty(count, *out.shape[1:]) for name, out in pieces[0][1].items()}
    for texts, outputs in pieces:
        for name, out in outputs.items():
            joined[name][texts] = out
    return joined
