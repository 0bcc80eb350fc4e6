"""Proof that the aligned model computes the same function as before.

Both are run in float64 on the same inputs (in float32 where the model itself runs in no other dtype): on text, then on
made-up values of every other input that their forward method takes. An output on a moved axis, such as the hidden
states of a model without a head, is compared after the same transform. No merge happens unless all outputs agree within
the bound of the spec.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from merge.alignment.evidence.streamed_model import streamed_models
from merge.alignment.pair import Pair, as_transform, in_dtype
from merge.checkpoints.inputs import Batch
from merge.checkpoints.transformers_model import quiet, runs_beside_others
from merge.errors import AlignmentError
from merge.machine import in_parallel
from merge.symmetry.forward.call import Run, attempted, call
from merge.symmetry.forward.runs import find_runs
from merge.symmetry.permutation import Permutation
from merge.symmetry.spec import PermutationSpec, parse
from merge.symmetry.transform import TensorsWhenRead, Transform, apply_transform_axes, rows_of

MAX_BATCHES, MAX_TEXTS_PER_BATCH = 4, 2
MAX_TEXTS_UNUSUAL = 2  # in runs that give unusual inputs
# Outputs of the first model that are kept until the second has run on the same inputs.
MAX_KEPT_BYTES = 1 << 26
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
    transform = as_transform(moved)
    before, after = _models(pair, pair.b, aligned)
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
    kept, beside = _KeptOutputs(before, dtype, frozenset(spec.outputs)), runs_beside_others(before)
    for run in find_runs(before, in_dtype(usual, dtype), kept.fault).runs:
        differences = {name: _Difference() for name in spec.outputs}
        with torch.inference_mode(), quiet():
            old, new = _outputs(beside, partial(kept.outputs, run), partial(call, after, _in_dtype(run, dtype)))
            error = _worst(_add(spec, transform, old, new, differences))
        if not error <= worst:
            worst, given = error, run.given
    return worst, given


class _KeptOutputs:
    """The outputs of a model on the last runs that it took: a run that is found need not be run again to be compared."""

    def __init__(self, model: Any, dtype: torch.dtype, names: frozenset[str]) -> None:
        self.model, self.dtype, self.names = model, dtype, names
        # With each its run, whose values live as long: their identities are the key.
        self._kept: dict[tuple[object, ...], tuple[Run, dict[str, Tensor]]] = {}

    def fault(self, run: Run) -> str | None:
        """Return why the model refuses a run, as `fault_of`."""
        fault, outputs = attempted(self.model, _in_dtype(run, self.dtype))
        if fault is None:
            self._kept[_identity(run)] = run, {name: out for name, out in outputs.items() if name in self.names}
            while len(self._kept) > 1 and self._size() > MAX_KEPT_BYTES:
                del self._kept[next(iter(self._kept))]
        return fault

    def outputs(self, run: Run) -> dict[str, Tensor]:
        """Return the outputs on a run, computed again where they were not kept."""
        kept = self._kept.pop(_identity(run), None)
        return call(self.model, _in_dtype(run, self.dtype)) if kept is None else kept[1]

    def _size(self) -> int:
        return sum(out.nbytes for _, outputs in self._kept.values() for out in outputs.values())


def _identity(run: Run) -> tuple[object, ...]:
    return frozenset((name, id(value)) for name, value in run.values.items()), run.embedded, run.state


def _in_dtype(run: Run, dtype: torch.dtype) -> Run:
    """Return the run with its floating-point values in a dtype."""
    values = {n: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in run.values.items()}
    return replace(run, values=values)


def _models(pair: Pair, *sides: Mapping[str, Tensor]) -> list[Any]:
    """Return models of the pair with these weights; on the CPU their layers are in the spec's dtype only while they run."""
    dtype = getattr(torch, pair.spec.dtype)
    if pair.device != "cpu":
        return [pair.model(side, dtype) for side in sides]
    written = {pair.written_name(name): name for name in pair.b}
    stored = {name: pair.b[canonical] for name, canonical in written.items()}
    return streamed_models(pair.config, stored, [_by_written_name(side, written) for side in sides], dtype)


def _by_written_name(weights: Mapping[str, Tensor], written: Mapping[str, str]) -> TensorsWhenRead:
    return TensorsWhenRead(
        written,
        lambda name: weights[written[name]],
        lambda name, numbers: rows_of(weights, written[name], numbers),
    )


def compare(spec: PermutationSpec, before: Any, after: Any, transform: Transform, batches: Sequence[Batch]) -> Proof:
    """Return the proof that two models have the same outputs, those of the first after the transform.

    Args:
        before, after: transformers models in the spec's dtype.
        batches: inputs, as in `prove`.
    """
    dtype, texts = getattr(torch, spec.dtype), 0
    differences, beside = {name: _Difference() for name in spec.outputs}, runs_beside_others(before)
    with torch.inference_mode():
        parts = [{name: tensor[:MAX_TEXTS_PER_BATCH] for name, tensor in batch.items()} for batch in _spread(batches)]
        for part in (in_dtype(part, dtype) for part in _joined(parts)):
            old, new = _outputs(beside, partial(before, **part), partial(after, **part))
            _add(spec, transform, old, new, differences)
            texts += len(next(iter(part.values())))
    outputs = tuple(name for name, difference in differences.items() if difference.seen)
    if texts and not outputs:
        raise AlignmentError(
            f"the model gives none of the outputs that the {spec.family} table names: nothing is proved."
        )
    return Proof(_worst(differences), spec.bound, texts, outputs, spec.dtype)


def _outputs(beside: bool, *calls: Callable[[], Mapping[str, Tensor]]) -> list[Mapping[str, Tensor]]:
    """Return what the models give, beside each other in threads where they may: one small product uses several badly."""

    def inside(call: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        with torch.inference_mode():
            return call()

    return in_parallel(inside, calls) if beside else [inside(call) for call in calls]


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


def _joined(batches: Sequence[Batch]) -> list[Batch]:
    """Return the batches with those of one shape as one: a wide model reads all its weights for every batch."""
    groups: dict[tuple[object, ...], list[Batch]] = {}
    for batch in batches:
        shapes = tuple((name, tensor.shape[1:], tensor.dtype) for name, tensor in sorted(batch.items()))
        groups.setdefault(shapes, []).append(batch)
    return [{name: torch.cat([batch[name] for batch in group]) for name in group[0]} for group in groups.values()]


def _spread(batches: Sequence[Batch]) -> list[Batch]:
    """Return up to MAX_BATCHES batches, evenly spread: the first and the last are among them, short and long texts."""
    count = min(MAX_BATCHES, len(batches))
    return [batches[i * (len(batches) - 1) // max(count - 1, 1)] for i in range(count)]
