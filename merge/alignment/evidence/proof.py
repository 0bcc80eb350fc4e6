"""Proof that the aligned model computes the same function as before.

Both are run in float64 on the same inputs (in float32 where the model itself runs in no other dtype): on text, then on
made-up values of every other input that their forward method takes. An output on a moved axis, such as the hidden
states of a model without a head, is compared after the same transform. No merge happens unless all outputs agree within
the bound of the spec.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from merge.alignment.evidence.streamed_model import streamed_model
from merge.alignment.pair import Pair, as_transform, in_dtype
from merge.checkpoints.inputs import Batch
from merge.checkpoints.transformers_model import quiet
from merge.errors import AlignmentError
from merge.symmetry.forward.call import Run, call, fault_of
from merge.symmetry.forward.runs import find_runs
from merge.symmetry.permutation import Permutation
from merge.symmetry.spec import PermutationSpec, parse
from merge.symmetry.transform import TensorsWhenRead, Transform, apply_transform_axes

MAX_BATCHES, MAX_TEXTS_PER_BATCH = 4, 4
MAX_TEXTS_UNUSUAL = 2  # in runs that give unusual inputs
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
    dtype, transform = getattr(torch, pair.spec.dtype), as_transform(moved)
    before, after = (_model(pair, side, dtype) for side in (pair.b, aligned))
    proof = compare(pair.spec, before, after, transform, batches)
    inputs = f"{proof.texts} texts"
    if proof.holds and batches:
        usual = {name: tensor[:MAX_TEXTS_UNUSUAL] for name, tensor in batches[0].items()}
        worst, given = compare_other_inputs(pair.spec, before, after, transform, usual)
        if not worst <= proof.error:
            proof, inputs = replace(proof, error=worst), f"given {', '.join(sorted(given))}"
    if not proof.holds:
        raise AlignmentError(
            f"the aligned model is not the model it was: outputs differ by {proof.error:.2g} standard deviations "
            f"(bound {proof.bound:g}, {pair.spec.dtype}, {inputs}). Nothing was merged; the {pair.spec.family} "
            "table does not fit it."
        )
    return proof


def compare_other_inputs(
    spec: PermutationSpec, before: Any, after: Any, transform: Transform, usual: Batch
) -> tuple[float, frozenset[str]]:
    """Return the largest difference in runs that give the inputs beside the usual ones, and what that run gives.

    Values are made up; runs that the first model refuses give nothing to compare.

    Args:
        usual: a few texts or images.
    """
    dtype, worst, given = getattr(torch, spec.dtype), 0.0, frozenset[str]()
    found = find_runs(before, in_dtype(usual, dtype), lambda run: fault_of(before, _in_dtype(run, dtype)))
    for run in (_in_dtype(run, dtype) for run in found.runs):
        differences = {name: _Difference() for name in spec.outputs}
        with torch.inference_mode(), quiet():
            error = _worst(_add(spec, transform, call(before, run), call(after, run), differences))
        if not error <= worst:
            worst, given = error, run.given
    return worst, given


def _in_dtype(run: Run, dtype: torch.dtype) -> Run:
    """Return the run with its floating-point values in a dtype."""
    values = {n: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in run.values.items()}
    return replace(run, values=values)


def _model(pair: Pair, weights: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """Return a model of the pair; on the CPU its layers are in that dtype only while they run."""
    if pair.device != "cpu":
        return pair.model(weights, dtype)
    written = {pair.written_name(name): name for name in weights}
    stored = {name: pair.b[canonical] for name, canonical in written.items()}
    read = TensorsWhenRead(written, lambda name: weights[written[name]])
    return streamed_model(pair.config, stored, read, dtype)


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
            _add(spec, transform, before(**part), after(**part), differences)
            texts += len(next(iter(part.values())))
    outputs = tuple(name for name, difference in differences.items() if difference.seen)
    if texts and not outputs:
        raise AlignmentError(
            f"the model gives none of the outputs that the {spec.family} table names: nothing is proved."
        )
    return Proof(_worst(differences), spec.bound, texts, outputs, spec.dtype)


def _add(
    spec: PermutationSpec,
    transform: Transform,
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    differences: dict[str, _Difference],
) -> dict[str, _Difference]:
    """Add the differences of the outputs that a call gives; some are given only where their inputs are."""
    for name, line in spec.outputs.items():
        if name in old:
            differences[name].add(apply_transform_axes(parse(line), transform, old[name]), new[name])
    return differences


def _worst(differences: Mapping[str, _Difference]) -> float:
    errors = [difference.error for difference in differences.values()]
    # Python's max ignores a NaN that is not the first.
    return math.nan if any(map(math.isnan, errors)) else max(errors, default=0.0)


class _Difference:
    """The largest difference of two outputs over all batches, and the standard deviation of the first."""

    def __init__(self) -> None:
        self.seen = False
        self.largest, self.shift = torch.zeros((), dtype=torch.float64), math.nan
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, expected: Tensor, actual: Tensor) -> None:
        self.seen = True
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
