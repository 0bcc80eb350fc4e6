"""Coordinate descent with maps: b is rewritten step by step until it is as near to a as the symmetries allow.

    J = 1 - |A - B|^2 / (|A|^2 + |B|^2) = 2 <A, B> / (|A|^2 + |B|^2)

over all tensors that move; 1 where b equals a. Every step is the best one along one axis, or along blocks and what is
inside them, from the current b, and is taken only if J gains. Where a group stretches (scales, every invertible map) there
are two candidates: the best rotation of b as it is, and the best rotation between both models balanced,

    (balance of a)^-1 . rotation . (balance of b),

which finds b however it was stretched, and fits less well where it was not. Vectors are centred, because a constant fits
every order equally, but not where centring would not commute with the maps.

Source: Schoenemann 1966, doi:10.1007/BF02289451 (Procrustes); Zhang et al. 2025, arXiv:2502.00264 (bases inside heads).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.pair import Pair, streams
from merge.alignment.solvers.balance import BALANCES, balance
from merge.alignment.solvers.blocks_with_maps import Slot, match_coordinate
from merge.alignment.solvers.descent import busiest, shuffled
from merge.alignment.solvers.objective import CHUNK, Occurrence, occurrences
from merge.alignment.solvers.unit_rows import unit_rows
from merge.symmetry.permutation import Permutation, identity, unit_positions
from merge.symmetry.spec import PermutationSpec
from merge.symmetry.transform import Transform, apply_transform, apply_transform_axes, axis_sizes, compose, inverse

# Groups that leave the mean of a vector unchanged. A sign negates it: gains of 1 against gains of -1 cancel at the midpoint,
# and that has to count.
KEEP_MEAN = frozenset({"permutation", "none", "orthogonal_one"})
ROTATIONS = frozenset({"orthogonal", "orthogonal_one"})
# A step by which J gains less is rounding, not progress.
STEP_TOLERANCE = 1e-10

Tensors = Mapping[str, Tensor]


def wants_maps(pair: Pair) -> bool:
    """Return whether maps are requested: bases inside heads, or a residual stream that may be rotated."""
    return pair.settings.basis == "orthogonal" or any(_rotates(pair, axis) for axis in pair.movable)


def _rotates(pair: Pair, axis: str) -> bool:
    """Return whether an axis is a stream of a model whose norms are folded: then it is to be rotated."""
    kind = pair.spec.kind(axis)
    return pair.spec.group(axis) in ROTATIONS and kind in streams((kind,))


def acting_groups(pair: Pair, kinds: frozenset[str]) -> dict[str, str]:
    """Return axis of these kinds -> the group that acts on it under the pair's settings.

    Without basis: orthogonal these are permutations, but for a stream that is rotated.
    """
    groups = {}
    for axis in axis_sizes(pair.spec, pair.shapes):
        if pair.spec.kind(axis) in kinds and axis not in pair.spec.named:
            permutations = "permutation" if axis in pair.movable else "none"
            with_maps = pair.settings.basis == "orthogonal" or _rotates(pair, axis)
            groups[axis] = pair.spec.group(axis) if with_maps else permutations
    return groups


class MappedDescent:
    """A pair whose b is moved towards a, one coordinate at a time; a `merge.alignment.solvers.descent.Point`.

    Attributes:
        transform: what brings the pair's b to the current one.
        coordinates: what is moved one at a time, in the order of the table.
        tensors: coordinate -> names of the tensors that its axes are on.
    """

    def __init__(self, pair: Pair, kinds: frozenset[str], start: Transform | None = None) -> None:
        self.spec, self.groups, self.device = pair.spec, acting_groups(pair, kinds), pair.device
        self.unmoved = identity(pair.spec, pair.shapes)
        self.transform = start or Transform(self.unmoved, {})
        b = apply_transform(pair.spec, self.transform, pair.b) if start else pair.b
        self.occurrences = occurrences(pair, pair.axes_of(kinds))
        self.coordinates = tuple(self.occurrences)
        self.tensors = {c: tuple(dict.fromkeys(o.tensor for o in group)) for c, group in self.occurrences.items()}
        names = dict.fromkeys(name for group in self.tensors.values() for name in group)
        self.a, self.b = ({n: self._centred(n, side[n]) for n in names} for side in (pair.a, b))
        # Of each tensor <a, b> and <b, b>; <a, a> over all.
        self.inner = {name: dot(self.a[name], self.b[name]) for name in names}
        self.squares = {name: dot(self.b[name], self.b[name]) for name in names}
        self.square_a = math.fsum(dot(self.a[name], self.a[name]) for name in names)
        # How often each tensor has changed, and for each coordinate what that was when it was known to be at its best.
        self._changes = dict.fromkeys(names, 0)
        self._settled: dict[str, tuple[int, ...]] = {}

    def _centred(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.ndim != 1 or not tensor.is_floating_point():
            return tensor
        views = (view for along in self.spec.views(name, tuple(tensor.shape)) for view in along)
        acting = {self.groups.get(view.map_axis, "none") for view in views if view.role != "="}
        return tensor - tensor.mean() if acting <= KEEP_MEAN else tensor

    @property
    def value(self) -> float:
        """J at the current b."""
        return _nearness(self.inner, self.squares, self.square_a)

    def axes_of(self, coordinate: str) -> frozenset[str]:
        """Return the axes that are moved together: the blocks' and those inside them."""
        views = [occurrence.view for occurrence in self.occurrences[coordinate]]
        names = {name for view in views for name in (*view.movable, view.map_axis)}
        return frozenset(names & self.groups.keys())

    def shuffled(self, generator: torch.Generator) -> Transform:
        """Return the current transform, followed by a shuffle of some units of the busiest axis."""
        axis = busiest(self.tensors)
        index = shuffled(self.unmoved.indices[axis], generator)
        shuffle = Permutation({**self.unmoved.indices, axis: index}, self.unmoved.outer)
        return compose(Transform(shuffle, {}), self.transform)

    def sweep(self, order: Sequence[str]) -> bool:
        """Take the best step along each coordinate in turn; return whether any was taken."""
        taken = [self.improve(coordinate) for coordinate in order]
        return any(taken)

    def improve(self, coordinate: str, matched: Collection[str] | None = None) -> bool:
        """Take the best step along one coordinate; return whether one was taken.

        Args:
            matched: if given, only tensors whose other axes are fixed or among these are compared, and the step is taken
                whether or not J over all tensors gains.
        """
        everywhere, names = self.occurrences[coordinate], self.tensors[coordinate]
        counted = [o for o in everywhere if matched is None or o.others <= frozenset(matched)]
        if not counted or (matched is None and self._settled.get(coordinate) == self._state(coordinate)):
            return False
        best, value = None, self.value + STEP_TOLERANCE if matched is None else -math.inf
        steps = self._steps(coordinate, counted)
        for step in steps:
            if step.is_identity:
                continue
            new = {name: apply_transform_axes(self.spec.axes(name), step, self.b[name]) for name in names}
            inner = self.inner | {name: dot(self.a[name], tensor) for name, tensor in new.items()}
            squares = self.squares | {name: dot(tensor, tensor) for name, tensor in new.items()}
            if (reached := _nearness(inner, squares, self.square_a)) > value:
                best, value = (step, new, inner, squares), reached
        if best is not None:
            self.transform = compose(best[0], self.transform)
            self.b |= best[1]
            self.inner, self.squares = best[2:]
            self._changes |= {name: self._changes[name] + 1 for name in names}
        # After the only candidate, found in closed form on all tensors, the next would be the identity.
        final = best is None or (len(steps) == 1 and self._is_exact(coordinate))
        if final and len(counted) == len(everywhere):
            self._settled[coordinate] = self._state(coordinate)
        return best is not None

    def _state(self, coordinate: str) -> tuple[int, ...]:
        """Return how often each tensor of a coordinate has changed."""
        return tuple(self._changes[name] for name in self.tensors[coordinate])

    def _is_exact(self, coordinate: str) -> bool:
        """Return whether a step is the best of all: gains do not depend on the axes themselves, nor on a level between."""
        axes = self.axes_of(coordinate)
        return all(axes.isdisjoint(o.others) and len(o.view.names) < 3 for o in self.occurrences[coordinate])

    def _steps(self, coordinate: str, counted: Sequence[Occurrence]) -> list[Transform]:
        """Return the best steps along a coordinate: of b as it is, and between balanced models where a group stretches."""
        steps = [self._step(coordinate, counted, self.a, self.b)]
        stretching = {axis: self.groups[axis] for axis in self.axes_of(coordinate) if self.groups[axis] in BALANCES}
        if stretching:
            sides = [{name: side[name] for name in self.tensors[coordinate]} for side in (self.a, self.b)]
            balances = [balance(self.spec, side, stretching, self.unmoved) for side in sides]
            a, b = (apply_transform(self.spec, t, side) for t, side in zip(balances, sides, strict=True))
            rotation = self._step(coordinate, counted, a, b)
            steps.append(compose(inverse(balances[0]), compose(rotation, balances[1])))
        return steps

    def _step(self, coordinate: str, counted: Sequence[Occurrence], a: Tensors, b: Tensors) -> Transform:
        """Return the best step that stretches nothing."""
        gains: dict[Slot, Tensor] = {}
        for occurrence in counted:
            view = occurrence.view
            slot = (view.names, view.map_axis if view.role != "=" and view.map_axis in self.groups else "")
            rows_a, rows_b = (_rows(self.spec, occurrence, side[occurrence.tensor]).to(self.device) for side in (a, b))
            product = (rows_a @ rows_b.T).cpu().double().reshape(*view.shape, *view.shape)
            gains[slot] = gains[slot] + product if slot in gains else product
        matching = match_coordinate(coordinate, gains, self.groups)
        indices = {axis: index for axis, index in matching.indices.items() if axis in self.unmoved.indices}
        return Transform(Permutation({**self.unmoved.indices, **indices}, self.unmoved.outer), matching.maps)


def _rows(spec: PermutationSpec, occurrence: Occurrence, tensor: Tensor) -> Float[Tensor, "units rest"]:
    """Return the units of a view as rows, in float32, or float64 where the tensor is."""
    axes = spec.axes(occurrence.tensor)
    dim, span = sum(axis.span for axis in axes[: occurrence.item]), axes[occurrence.item].span
    rows = unit_rows(tensor, dim, span, unit_positions(occurrence.view))
    return rows.to(tensor.dtype if tensor.dtype == torch.float64 else torch.float32)


def dot(a: Tensor, b: Tensor) -> float:
    """Return <a, b>, summed in float64 over pieces."""
    pieces = zip(a.reshape(-1).split(CHUNK), b.reshape(-1).split(CHUNK), strict=True)
    return math.fsum(float(torch.dot(x.double(), y.double())) for x, y in pieces)


def _nearness(inner: Mapping[str, float], squares: Mapping[str, float], square_a: float) -> float:
    """Return 2 <A, B> / (|A|^2 + |B|^2)."""
    return 2 * math.fsum(inner.values()) / (square_a + math.fsum(squares.values()) or 1.0)
