"""Objective of weight matching: how alike two models' weights are under a permutation of b, and what each axis could gain.

    J(p) = sum_t <A_t, p(B)_t> / (rms(A_t) rms(B_t))

Dividing by the root mean square makes every *entry* count alike: a tensor weighs as much as it has entries. Vectors are
centred first, because a constant (the ones of a LayerNorm gain) fits every order equally and would only hide what differs.

A coordinate of the search is an axis, or the blocks of a split axis (heads) together with the orders inside them. Its gains
are a square matrix: entry (i, j) is how much J gains when unit j of b takes position i. They are products of matrices, in
float32 (float64 for float64 models), added up in float64; J itself is summed in float64 on the tensors, a piece at a time.
Products of tensors that depend on the same other axes are cached: after the heads of one layer change, only their part of
the residual's gains is computed again.

Source: Ainsworth et al. 2023, arXiv:2209.04836, section 3.2 (without the normalisation and the centring).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.pair import Pair
from merge.alignment.solvers.unit_rows import unit_rows
from merge.symmetry.notation import TensorAxis, View
from merge.symmetry.permutation import Permutation, flat_index, take, unit_positions

# Entries whose product is taken in float64 at a time.
CHUNK = 1 << 17
# Gains that are cached for one coordinate.
MAX_CACHED_BYTES = 1 << 29

# The index arrays that a result depends on.
State = tuple[Tensor, ...]
# The names of a view's levels, outermost first.
Names = tuple[str, ...]
# The names and sizes of a view's levels, and the movable axes along the tensor's other items.
Group = tuple[Names, tuple[int, ...], frozenset[str]]


@dataclass(frozen=True)
class Weights:
    """Both models' tensors with vectors centred, and one over the root mean square of each; 0 where that is 0."""

    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    scale_a: Mapping[str, float]
    scale_b: Mapping[str, float]

    def scale(self, name: str) -> float:
        return self.scale_a[name] * self.scale_b[name]


def weights_of(pair: Pair) -> Weights:
    """Return a pair's weights as they are compared; matrices are shared with the pair, not copied."""
    a, b = ({name: centred(tensor) for name, tensor in side.items()} for side in (pair.a, pair.b))
    scales = ({name: inverse_rms(tensor) for name, tensor in side.items()} for side in (a, b))
    return Weights(a, b, *scales)


def centred(tensor: Tensor) -> Tensor:
    """Return a vector about its mean; other tensors as they are."""
    return tensor - tensor.mean() if tensor.ndim == 1 and tensor.is_floating_point() else tensor


def inverse_rms(tensor: Tensor) -> float:
    """Return one over the root mean square of a tensor; 0 where that is 0."""
    total = square_sum(tensor)
    return math.sqrt(tensor.numel() / total) if total > 0 else 0.0


def square_sum(tensor: Tensor) -> float:
    """Return the sum of the squares of all entries, in float64 over pieces that fit into a cache."""
    pieces = (piece.double() for piece in tensor.reshape(-1).split(CHUNK))
    return math.fsum(float(torch.dot(piece, piece)) for piece in pieces)


@dataclass(frozen=True)
class Occurrence:
    """Units of an axis along one axis of a tensor.

    Attributes:
        item: the item of the tensor's line, from 0.
        view: the positions of the units there.
        others: the movable axes along the tensor's other items.
        alone: whether the tensor has no other items (a vector).
    """

    tensor: str
    item: int
    view: View
    others: frozenset[str]
    alone: bool


def occurrences(pair: Pair, movable: tuple[str, ...]) -> dict[str, list[Occurrence]]:
    """Return movable axis, or the blocks' of a split axis -> where its units occur, in the order of the tensors."""
    by_coordinate: dict[str, list[Occurrence]] = {}
    for name in pair.a:
        views = pair.spec.views(name, tuple(pair.a[name].shape))
        names = [{word for view in along for word in view.movable if word in movable} for along in views]
        for item, along in enumerate(views):
            others = frozenset().union(*(names[k] for k in range(len(names)) if k != item))
            for view in along:
                if view.names[0] in movable:
                    occurrence = Occurrence(name, item, view, others, len(views) == 1)
                    by_coordinate.setdefault(view.names[0], []).append(occurrence)
    return by_coordinate


class Objective:
    """J over some movable axes of a pair, its term for each tensor, and the gains of each coordinate.

    Attributes:
        occurrences: coordinate -> where its units occur.
        tensors: coordinate -> names of the tensors that its axes are on.
        tensor_names: of all tensors that any axis moves.
        entries: of all those tensors together; J / entries lies in [-1, 1].
        dtype: of the products.
    """

    def __init__(self, pair: Pair, weights: Weights, movable: tuple[str, ...]) -> None:
        self.spec, self.weights, self.movable, self.device = pair.spec, weights, movable, pair.device
        self.occurrences = occurrences(pair, movable)
        self.tensors = {
            coordinate: tuple(dict.fromkeys(o.tensor for o in group)) for coordinate, group in self.occurrences.items()
        }
        names = {name for group in self.tensors.values() for name in group}
        self.tensor_names = tuple(name for name in pair.a if name in names)
        self.entries = sum(pair.a[name].numel() for name in self.tensor_names) or 1
        dtypes = {side[name].dtype for side in (weights.a, weights.b) for name in self.tensor_names}
        self.dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        # Coordinate -> occurrences whose products belong together: of the same levels, with the same other axes.
        self._groups: dict[str, dict[Group, list[Occurrence]]] = {}
        for coordinate, group in self.occurrences.items():
            groups = self._groups.setdefault(coordinate, {})
            for occurrence in group:
                view = occurrence.view
                groups.setdefault((view.names, view.shape, occurrence.others), []).append(occurrence)
        self._cache: dict[tuple[str, Group], tuple[State, Tensor]] = {}

    def term(self, name: str, p: Permutation) -> float:
        """Return one tensor's term of J, in float64."""
        axes, a, b = self.spec.axes(name), self.weights.a[name], self.weights.b[name]
        return self.weights.scale(name) * inner(axes, p, a, b)

    def terms(self, names: tuple[str, ...], p: Permutation) -> dict[str, float]:
        """Return these tensors' terms of J."""
        return {name: self.term(name, p) for name in names}

    def axes_of(self, coordinate: str) -> tuple[str, ...]:
        """Return the axes that are matched together: the blocks' and those inside them."""
        names = dict.fromkeys(name for occurrence in self.occurrences[coordinate] for name in occurrence.view.movable)
        return tuple(name for name in names if name in self.movable)

    def context(self, coordinate: str) -> tuple[str, ...]:
        """Return the axes that the gains of this coordinate depend on."""
        return tuple(sorted(frozenset().union(*(occurrence.others for occurrence in self.occurrences[coordinate]))))

    def gains(self, coordinate: str, p: Permutation, matched: frozenset[str] | None = None) -> dict[Names, Tensor]:
        """Return, by the names of a view's levels, the gain of each assignment of b's units to positions of this coordinate.

        The arrays have the levels' sizes twice: first positions, then b's units. They are float64, but for an axis alone whose
        gains are one product: that stays in its own dtype, at half the memory. Every other axis is as p has it.

        Args:
            matched: if given, only tensors whose other axes are fixed or among these count: the order of an axis
                that has not been matched yet holds no information.
        """
        groups = self._groups[coordinate]
        levels = list(dict.fromkeys((names, shape) for names, shape, _ in groups))
        needed = self.dtype.itemsize * len(groups) * max(math.prod(shape) for _, shape in levels) ** 2
        cached = len({others for *_, others in groups if others}) > 1 and needed <= MAX_CACHED_BYTES
        total: dict[Names, Tensor] = {}
        for names, shape in levels:
            counted = [g for g in groups if g[:2] == (names, shape) and (matched is None or g[2] <= matched)]
            if cached:
                gain = torch.zeros(math.prod(shape), math.prod(shape), dtype=torch.float64)
                for key in counted:
                    gain += self._cached_product(coordinate, key, p)
            else:
                members = [occurrence for key in counted for occurrence in groups[key]]
                gain = self._product(math.prod(shape), members, p)
                gain = gain if len(levels) == len(names) == 1 else gain.double()
            gain = gain.reshape(*shape, *shape)
            if sum(other == names for other, _ in levels) > 1:
                names, gain = without_fixed_level(names, gain)
            total[names] = total[names] + gain if names in total else gain
        return total

    def _cached_product(self, coordinate: str, group: Group, p: Permutation) -> Tensor:
        """Return a group's gain as it was computed, which is done again if one of the axes it depends on has changed."""
        key, state = (coordinate, group), tuple(p.indices[axis] for axis in sorted(group[2]))
        if key not in self._cache or not equal_states(self._cache[key][0], state):
            members = self._groups[coordinate][group]
            self._cache[key] = state, self._product(math.prod(group[1]), members, p)
        return self._cache[key][1]

    def _product(self, units: int, group: list[Occurrence], p: Permutation) -> Tensor:
        """Return the scaled products of rows of a with rows of b, added up over tensors; vectors make one matrix."""
        total = torch.zeros(units, units, dtype=self.dtype, device=self.device)
        vectors = [occurrence for occurrence in group if occurrence.alone]
        for occurrence in group:
            if not occurrence.alone:
                a, b = self.rows(occurrence, "a", None), self.rows(occurrence, "b", p)
                total.addmm_(a.to(total.device), b.to(total.device).T, alpha=self.weights.scale(occurrence.tensor))
        if vectors:
            columns_a = [self.rows(vector, "a", None) * self.weights.scale(vector.tensor) for vector in vectors]
            columns_b = [self.rows(vector, "b", p) for vector in vectors]
            total.addmm_(torch.cat(columns_a, 1).to(total.device), torch.cat(columns_b, 1).to(total.device).T)
        return total.cpu()

    def rows(self, occurrence: Occurrence, side: str, p: Permutation | None) -> Float[Tensor, "units rest"]:
        """Return a model's units of a view as rows, with the tensor's other axes as p has them.

        Args:
            side: "a" or "b".
        """
        tensor, dim, units, span = getattr(self.weights, side)[occurrence.tensor], 0, 0, 1
        tensor = tensor.to(self.dtype)
        for item, axis in enumerate(self.spec.axes(occurrence.tensor)):
            if item == occurrence.item:
                units, span = dim, axis.span
            elif p is not None:
                tensor = take(tensor, dim, axis.span, flat_index(axis, p, tuple(tensor.shape[dim : dim + axis.span])))
            dim += axis.span
        whole = math.prod(occurrence.view.shape) == math.prod(tensor.shape[units : units + span])
        return unit_rows(tensor, units, span, None if whole else unit_positions(occurrence.view))


def without_fixed_level(names: Names, gain: Tensor) -> tuple[Names, Tensor]:
    """Return the levels without the last one, `-`, whose units stay in their order, and the gain summed over them.

    Blocks may have so many such units in one tensor and another number in another (grouped convolutions).
    """
    last = gain.ndim // 2 - 1
    return names[:-1], gain.diagonal(dim1=last, dim2=gain.ndim - 1).sum(-1)


def equal_states(left: State, right: State) -> bool:
    """Return whether index arrays are equal, one by one."""
    return all(x is y or torch.equal(x, y) for x, y in zip(left, right, strict=True))


def inner(axes: tuple[TensorAxis, ...], p: Permutation, a: Tensor, b: Tensor) -> float:
    """Return <a, p(b)>, summed in float64 over pieces of rows."""
    shapes, dim = [], 0
    for axis in axes:
        shapes.append(tuple(b.shape[dim : dim + axis.span]))
        dim += axis.span
    orders = [flat_index(axis, p, shape) for axis, shape in zip(axes, shapes, strict=True)]
    left, right = (x.flatten(0, axes[0].span - 1) if axes[0].span > 1 else x for x in (a, b))
    rows, total = max(1, CHUNK * len(left) // max(left.numel(), 1)), 0.0
    for start in range(0, len(left), rows):
        chunk = slice(start, start + rows)
        moved, dim = right[chunk] if orders[0] is None else right[orders[0][chunk]], 1
        for axis, order in zip(axes[1:], orders[1:], strict=True):
            moved, dim = take(moved, dim, axis.span, order), dim + axis.span
        total += float(torch.dot(left[chunk].double().reshape(-1), moved.double().reshape(-1)))
    return total
