"""The similarity of two models' units after an alignment: correlations on text, or cosines of their weights without any."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from merge.alignment.pair import Alignment, Pair, spread
from merge.alignment.solvers.moments import unit_correlations
from merge.alignment.solvers.objective import CHUNK, Names, Occurrence, centred, inverse_rms, occurrences
from merge.alignment.solvers.unit_rows import unit_rows
from merge.symmetry.notation import View, contiguous
from merge.symmetry.permutation import identity, unit_positions, view_index
from merge.symmetry.transform import Transform, apply_transform, moved_when_read

# Tokens on which units are compared where the matcher has not compared them on all.
MAX_TOKENS = 1024
# Units of a that are compared by their weights with all units of b: all, or so many evenly spread over a longer axis.
MAX_UNITS = 128


@dataclass(frozen=True)
class Similarity:
    """The similarity of the units of one view.

    Attributes:
        view: as if it filled an axis alone.
        units: the units of a that are compared.
        scores: scores[i, j] is that of units[i] of a and unit j of the aligned b.
    """

    view: View
    units: Int[Tensor, " m"]
    scores: Float[Tensor, "m n"]

    @property
    def matched(self) -> float:
        """The mean similarity of units in the same position."""
        return float(self.scores.gather(1, self.units[:, None]).mean())


def has_activations(pair: Pair) -> bool:
    """Return whether units can be compared by their activations."""
    return bool(pair.batches and pair.spec.taps)


def similarities(pair: Pair, alignment: Alignment) -> Iterator[Similarity]:
    """Yield the similarity of the units of every view of an axis.

    The correlations of a permuted b are those of b in another order: no model is run again for what a matcher has compared.
    """
    if not has_activations(pair):
        yield from _cosines(pair, alignment)
        return
    permutation, measured = alignment.permutation, alignment.measured
    correlations = None if measured is None else measured.correlations
    if alignment.maps or alignment.reference_maps:
        a = apply_transform(pair.spec, _of_reference(pair, alignment), pair.a)
        b = apply_transform(pair.spec, alignment.transform, pair.b)
        permutation = identity(pair.spec, pair.shapes)
        correlations = unit_correlations(replace(pair, a=a, b=b, batches=spread(pair.batches, MAX_TOKENS)))
    elif correlations is None:
        correlations = unit_correlations(replace(pair, batches=spread(pair.batches, MAX_TOKENS)))
    for view, correlation in correlations.items():
        order = view_index(view, permutation).reshape(-1)
        yield Similarity(view, torch.arange(len(order)), correlation[:, order])


def _of_reference(pair: Pair, alignment: Alignment) -> Transform:
    return Transform(identity(pair.spec, pair.shapes), alignment.reference_maps)


def _cosines(pair: Pair, alignment: Alignment) -> Iterator[Similarity]:
    """Yield the cosines of all weights of the units: each tensor has a root mean square of one, and vectors a mean of zero."""
    sides = (
        moved_when_read(pair.spec, _of_reference(pair, alignment), pair.a),
        moved_when_read(pair.spec, alignment.transform, pair.b),
    )
    scales: dict[str, tuple[float, ...]] = {}
    for everywhere in occurrences(pair, pair.movable).values():
        groups: dict[Names, list[Occurrence]] = {}
        for occurrence in everywhere:
            groups.setdefault(occurrence.view.names, []).append(occurrence)
        for names, group in groups.items():
            view = contiguous(names, group[0].view.shape)
            count = math.prod(view.shape)
            some = min(count, MAX_UNITS) if len(view.shape) == 1 else count
            units = torch.linspace(0, count - 1, some, dtype=torch.float64).round().long()
            dtype = torch.float64 if pair.a[group[0].tensor].dtype == torch.float64 else torch.float32
            scores = torch.zeros(some, count, dtype=dtype)
            squares_a, squares_b = (torch.zeros(n, dtype=torch.float64) for n in (some, count))
            for occurrence in group:
                tensors = [centred(side[occurrence.tensor]) for side in sides]
                if occurrence.tensor not in scales:
                    scales[occurrence.tensor] = tuple(map(inverse_rms, tensors))
                scale_a, scale_b = scales[occurrence.tensor]
                a, b = (_rows(pair, occurrence, x) for x in tensors)
                a = a[units]
                scores.addmm_(a.to(dtype), b.to(dtype).T, alpha=scale_a * scale_b)
                squares_a += scale_a**2 * _squares(a)
                squares_b += scale_b**2 * _squares(b)
            # A unit of zeros has cosine 0.
            inverse_a, inverse_b = (torch.where(x > 0, x, torch.inf).rsqrt() for x in (squares_a, squares_b))
            yield Similarity(view, units, scores * inverse_a[:, None] * inverse_b)


def _rows(pair: Pair, occurrence: Occurrence, tensor: Tensor) -> Float[Tensor, "units rest"]:
    """Return the units of a view as rows."""
    items = pair.spec.axes(occurrence.tensor)
    dim, span = sum(axis.span for axis in items[: occurrence.item]), items[occurrence.item].span
    whole = math.prod(occurrence.view.shape) == math.prod(tensor.shape[dim : dim + span])
    return unit_rows(tensor, dim, span, None if whole else unit_positions(occurrence.view))


def _squares(rows: Float[Tensor, "units rest"]) -> Float[Tensor, " units"]:
    """Return the sum of the squares of every row, in float64."""
    if rows.stride(1) == 1:
        return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
    # Columns of the tensor: all rows a few entries at a time take a tenth of the time of one row after the other.
    total = torch.zeros(len(rows), dtype=torch.float64)
    for piece in rows.split(max(1, CHUNK // max(len(rows), 1)), dim=1):
        total += piece.double().square().sum(1)
    return total
