"""Proof: the aligned model is still the model it was.

Both are run in float64 on the same inputs (in float32 where the model knows no other). An output that lives on a moved axis
(the hidden states of a model without a head) is compared after the same transform. No merge happens unless they agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.alignment.pair import Batch, Pair, as_transform, in_dtype
from merge.errors import AlignmentError
from merge.permutation import Permutation
from merge.spec import parse
from merge.transform import Transform, apply_transform_axes

BATCHES, TEXTS_A_BATCH = 4, 4


@dataclass(frozen=True)
class Proof:
    """What was compared: the largest difference of any output, in standard deviations of that output."""

    error: float
    bound: float
    texts: int
    outputs: tuple[str, ...]


def prove(
    pair: Pair, aligned: Mapping[str, Tensor], moved: Permutation | Transform, batches: tuple[Batch, ...]
) -> Proof:
    """Return the evidence that `aligned` computes what pair.b computes.

    Args:
        aligned: pair.b after what moved it.
        moved: that permutation or transform, for outputs that move with it.
        batches: inputs, sorted by length or not; some texts of a few batches evenly spread over them are used.
    Raises:
        AlignmentError: an output differs by more than the spec's bound, relative to its standard deviation.
    """
    transform = as_transform(moved)
    spec, dtype = pair.spec, getattr(torch, pair.spec.dtype)
    before, after = pair.model(pair.b, dtype), pair.model(aligned, dtype)
    worst, texts = 0.0, 0
    with torch.inference_mode():
        for batch in _spread(batches):
            part = in_dtype({name: tensor[:TEXTS_A_BATCH] for name, tensor in batch.items()}, dtype)
            old, new = before(**part), after(**part)
            for name, line in spec.outputs.items():
                expected = apply_transform_axes(parse(line), transform, old[name])
                spread = expected.std().clamp_min(torch.finfo(dtype).tiny)
                worst = max(worst, float((new[name] - expected).abs().max() / spread))
            texts += len(next(iter(part.values())))
    if not worst <= spec.bound:
        raise AlignmentError(
            f"the aligned model is not the model it was: outputs differ by {worst:.2g} standard deviations "
            f"(bound {spec.bound:g}, {spec.dtype}, {texts} texts). Nothing was merged; the {spec.family} table does not fit it."
        )
    return Proof(worst, spec.bound, texts, tuple(spec.outputs))


def _spread(batches: tuple[Batch, ...]) -> list[Batch]:
    """Return up to BATCHES batches from the shortest to the longest, so that padding and long texts are both seen."""
    count = min(BATCHES, len(batches))
    return [batches[i * (len(batches) - 1) // max(count - 1, 1)] for i in range(count)]
