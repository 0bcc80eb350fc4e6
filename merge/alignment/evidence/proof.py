"""Proof that the aligned model computes the same function as before.

Both are run in float64 on the same inputs (in float32 where the model itself runs in no other dtype). An output on a
moved axis, such as the hidden states of a model without a head, is compared after the same transform. No merge happens
unless all outputs agree within the bound of the spec.
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

MAX_BATCHES, MAX_TEXTS_PER_BATCH = 4, 4
# A variance of less than this share of the squared mean is rounding: all values are equal.
CONSTANT_VARIANCE = 1e-24


@dataclass(frozen=True)
class Proof:
    """The result of comparing two models.

    Attributes:
        error: the largest difference of any output, in standard deviations of that output.
        bound: the largest error that rounding explains.
        texts: number of inputs that both were run on.
        outputs: the names of the outputs that were compared.
        dtype: in which both were run.
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
    """Return the proof that `aligned` computes the same function as pair.b.

    Args:
        aligned: the tensors of pair.b after a permutation or transform.
        moved: that permutation or transform, for outputs that change with it.
        batches: inputs; a few texts are used, of a few batches evenly spread over these.
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
    """Return the proof that two models have the same outputs, those of the first after the transform.

    Args:
        before, after: transformers models in the spec's dtype.
        batches: inputs, as in `prove`.
    """
    dtype, texts = getattr(torch, spec.dtype), 0
    differences = {name: _Difference() for name in spec.outputs}
    with torch.inference_mode():
        for batch in _spread(batches):
            part = in_dtype({name: tensor[:MAX_TEXTS_PER_BATCH] for name, tensor in batch.items()}, dtype)
            old, new = before(**part), after(**part)
            for name, line in spec.outputs.items():
                differences[name].add(apply_transform_axes(parse(line), transform, old[name]), new[name])
            texts += len(next(iter(part.values())))
    errors = [difference.error for difference in differences.values()]
    # Python's max ignores a NaN that is not the first.
    worst = math.nan if any(map(math.isnan, errors)) else max(errors, default=0.0)
    return Proof(worst, spec.bound, texts, tuple(spec.outputs), spec.dtype)


class _Difference:
    """The largest difference of two outputs over all batches, and the standard deviation of the first."""

    def __init__(self) -> None:
        self.largest, self.shift = torch.zeros((), dtype=torch.float64), math.nan
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, expected: Tensor, actual: Tensor) -> None:
        expected, actual = expected.double().cpu(), actual.double().cpu()
        # Equal values first: a model may give minus infinity, and inf - inf is NaN.
        difference = torch.where(expected == actual, 0.0, (expected - actual).abs()).max()
        self.largest = torch.maximum(self.largest, difference)
        values = expected[torch.isfinite(expected)]
        if not self.count and values.numel():
            self.shift = float(values[0])
        values = values - self.shift  # so that a small deviation from a large mean keeps its digits
        self.count += values.numel()
        self.total += float(values.sum())
        self.squares += float(values.square().sum())

    @property
    def error(self) -> float:
        """The largest difference in standard deviations; where all values are equal, relative to their size."""
        mean = self.total / max(self.count, 1)
        variance = self.squares / max(self.count, 1) - mean**2
        square = (self.shift + mean) ** 2 if self.count else 0.0
        size = math.sqrt(variance if variance > CONSTANT_VARIANCE * square else square)
        return float(self.largest) / max(size, torch.finfo(torch.float64).tiny)


def _spread(batches: Sequence[Batch]) -> list[Batch]:
    """Return up to MAX_BATCHES batches, evenly spread: the first and the last are among them, short and long texts."""
    count = min(MAX_BATCHES, len(batches))
    return [batches[i * (len(batches) - 1) // max(count - 1, 1)] for i in range(count)]
