"""Proof: the aligned model is still the model it was.

Both are run in float64 on the same inputs (in float32 where the model knows no other). An output that lives on a moved axis
(the hidden states of a model without a head) is compared after the same transform. No merge happens unless they agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from merge.alignment.pair import Pair, as_transform, in_dtype
from merge.checkpoints.inputs import Batch
from merge.errors import AlignmentError
from merge.symmetry.permutation import Permutation
from merge.symmetry.spec import PermutationSpec, parse
from merge.symmetry.transform import Transform, apply_transform_axes

BATCHES, TEXTS_A_BATCH = 4, 4
# Of their mean square: values whose variance is less are all alike but for rounding.
CONSTANT = 1e-24


@dataclass(frozen=True)
class Proof:
    """What was compared: the largest difference of any output, in standard deviations of that output.

    Attributes:
        texts: inputs that both were run on.
        dtype: that they were run in.
    """

    error: float
    bound: float
    texts: int
    outputs: tuple[str, ...]
    dtype: str = "float64"

    @property
    def holds(self) -> bool:
        return self.error <= self.bound


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
    dtype = getattr(torch, pair.spec.dtype)
    proof = compare(pair.spec, pair.model(pair.b, dtype), pair.model(aligned, dtype), as_transform(moved), batches)
    if not proof.holds:
        raise AlignmentError(
            f"the aligned model is not the model it was: outputs differ by {proof.error:.2g} standard deviations "
            f"(bound {proof.bound:g}, {pair.spec.dtype}, {proof.texts} texts). Nothing was merged; the {pair.spec.family} "
            "table does not fit it."
        )
    return proof


def compare(spec: PermutationSpec, before: Any, after: Any, transform: Transform, batches: Sequence[Batch]) -> Proof:
    """Return how far two models' outputs are apart, what the first says being moved by the transform.

    Args:
        before, after: in the spec's dtype.
        batches: as `prove` takes them.
    """
    dtype, texts = getattr(torch, spec.dtype), 0
    found = {name: _Difference() for name in spec.outputs}
    with torch.inference_mode():
        for batch in _spread(batches):
            part = in_dtype({name: tensor[:TEXTS_A_BATCH] for name, tensor in batch.items()}, dtype)
            old, new = before(**part), after(**part)
            for name, line in spec.outputs.items():
                found[name].add(apply_transform_axes(parse(line), transform, old[name]), new[name])
            texts += len(next(iter(part.values())))
    errors = [one.error for one in found.values()]
    # Python's max would pass over a NaN that is not the first.
    worst = math.nan if any(map(math.isnan, errors)) else max(errors, default=0.0)
    return Proof(worst, spec.bound, texts, tuple(spec.outputs), spec.dtype)


class _Difference:
    """How far two runs of values are apart, and how far the first of them spread."""

    def __init__(self) -> None:
        self.apart, self.first = torch.zeros((), dtype=torch.float64), math.nan
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, expected: Tensor, found: Tensor) -> None:
        one, other = expected.double().cpu(), found.double().cpu()
        # What is equal is not apart: a model may say minus infinity.
        self.apart = torch.maximum(self.apart, torch.where(one == other, 0.0, (one - other).abs()).max())
        said = one[torch.isfinite(one)]
        if not self.count and said.numel():
            self.first = float(said[0])
        said = said - self.first  # small spreads about a large mean keep their digits
        self.count += said.numel()
        self.total += float(said.sum())
        self.squares += float(said.square().sum())

    @property
    def error(self) -> float:
        """The largest difference in standard deviations; of values that are all alike, in their size."""
        mean = self.total / max(self.count, 1)
        variance = self.squares / max(self.count, 1) - mean**2
        square = (self.first + mean) ** 2 if self.count else 0.0
        size = math.sqrt(variance if variance > CONSTANT * square else square)
        return float(self.apart) / max(size, torch.finfo(torch.float64).tiny)


def _spread(batches: Sequence[Batch]) -> list[Batch]:
    """Return up to BATCHES batches from the shortest to the longest, so that padding and long texts are both seen."""
    count = min(BATCHES, len(batches))
    return [batches[i * (len(batches) - 1) // max(count - 1, 1)] for i in range(count)]
