"""Soft permutations: a doubly stochastic matrix for every view of an axis, and the objective as a smooth function of them.

Position i takes the mixture sum_j M[i, j] of b's units; a permutation is the case of zeros and ones. Inside blocks the matrix
is over all units of the axis: entry ((g, i), (h, j)) is how much of unit j of b's block h goes to position i of block g.

    J(M) = sum_t <A_t, M_1 B_t M_2^T> / (rms(A_t) rms(B_t))

is linear in each matrix, so its gradient with respect to one of them is a gain matrix of `merge.alignment.solvers.objective`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from merge.alignment.solvers.assignment import match_axis
from merge.alignment.solvers.blocks import match_blocks
from merge.alignment.solvers.objective import Objective
from merge.alignment.solvers.unit_rows import unit_rows
from merge.symmetry.notation import View, contiguous
from merge.symmetry.permutation import Permutation, unit_positions, view_index

Names = tuple[str, ...]
# Names of a view's levels -> a matrix over its units, positions along the rows.
Soft = dict[Names, Tensor]


@dataclass(frozen=True)
class Item:
    """A movable item of a tensor's line: its first dimension, how many dimensions it spans, and its views."""

    dim: int
    span: int
    views: tuple[View, ...]


class Relaxation:
    """The objective of a pair over soft permutations."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.dtype = objective, objective.dtype
        self.items = {name: self._items(name) for name in objective.tensor_names}
        views = [view for items in self.items.values() for item in items for view in item.views]
        # Each as if it filled an axis alone.
        self.views = {v.names: contiguous(v.names, v.shape) for v in views if v.names[0] in objective.occurrences}

    def _items(self, name: str) -> tuple[Item, ...]:
        """Return the items of a tensor's line that move."""
        spec, shape, dim, items = self.objective.spec, tuple(self.objective.weights.a[name].shape), 0, []
        for axis, views in zip(spec.axes(name), spec.views(name, shape), strict=True):
            if any(view.names[0] in self.objective.occurrences for view in views):
                items.append(Item(dim, axis.span, views))
            dim += axis.span
        return tuple(items)

    @property
    def degree(self) -> int:
        """The degree of J along a line: the most matrices that multiply one tensor."""
        return max((len(items) for items in self.items.values()), default=0)

    def vertex(self, p: Permutation) -> Soft:
        """Return a permutation as matrices."""
        matrices = {}
        for names, view in self.views.items():
            index = view_index(view, p).reshape(-1)
            matrices[names] = torch.zeros(len(index), len(index), dtype=self.dtype)
            matrices[names].scatter_(1, index[:, None], 1.0)
        return matrices

    def barycentre(self) -> Soft:
        """Return the uniform mixture: every unit has the same part in every position that it can take."""
        matrices = {}
        for names, view in self.views.items():
            matrices[names] = torch.ones(1, 1, dtype=self.dtype)
            for name, n in zip(names, view.shape, strict=True):
                level = torch.eye(n, dtype=self.dtype) if name == "-" else torch.full((n, n), 1 / n, dtype=self.dtype)
                matrices[names] = torch.kron(matrices[names], level)
        return matrices

    def best(self, gains: Soft) -> Permutation:
        """Return the permutation with the largest <gains, M>; other axes stay. Exact but for grouped queries."""
        by_coordinate: dict[str, dict[Names, Tensor]] = {}
        for names, gain in gains.items():
            shape = self.views[names].shape
            by_coordinate.setdefault(names[0], {})[names] = gain.double().reshape(*shape, *shape)
        indices: dict[str, Int[Tensor, ...]] = {}
        for coordinate, group in by_coordinate.items():
            alone = group.get((coordinate,))
            indices |= {coordinate: match_axis(alone)} if alone is not None and len(group) == 1 else match_blocks(group)
        return Permutation(indices, {})

    def matrices(self, name: str, soft: Soft) -> list[tuple[Item, Tensor]]:
        """Return the movable items of a tensor, each with the matrix along it."""
        return [(item, item_matrix(item, soft)) for item in self.items[name]]

    def value(self, soft: Soft) -> float:
        """Return J at a soft permutation."""
        return self.gradient(soft)[0]

    def gradient(self, soft: Soft) -> tuple[float, Soft]:
        """Return J and its gradient, float64 sums of products in the objective's dtype."""
        weights, total = self.objective.weights, 0.0
        sums = {n: torch.zeros(len(m), len(m), dtype=torch.float64) for n, m in soft.items()}
        for name, items in self.items.items():
            a, b = (side[name].to(self.dtype) for side in (weights.a, weights.b))
            moving = self.matrices(name, soft)
            for k, item in enumerate(items):
                others = moving[:k] + moving[k + 1 :]
                gain = unit_rows(a, item.dim, item.span) @ unit_rows(mixed(b, others), item.dim, item.span).T
                gain *= weights.scale(name)
                if k == 0:
                    total += float((gain.double() * moving[0][1]).sum())
                for view in item.views:
                    if view.names in soft:
                        at = unit_positions(view).reshape(-1)
                        sums[view.names] += gain if len(at) == len(gain) else gain[at[:, None], at]
        return total, sums


def item_matrix(item: Item, soft: Soft) -> Float[Tensor, "n n"]:
    """Return the matrix along a whole item: those of its views, and the identity at positions that do not move."""
    only = soft.get(item.views[0].names)
    size = sum(math.prod(view.shape) for view in item.views)
    if len(item.views) == 1 and only is not None:
        return only
    like = next(soft[view.names] for view in item.views if view.names in soft)
    out = torch.zeros(size, size, dtype=like.dtype)
    for view in item.views:
        at = unit_positions(view).reshape(-1)
        out[at[:, None], at] = soft[view.names] if view.names in soft else torch.eye(len(at), dtype=like.dtype)
    return out


def mixed(tensor: Tensor, moving: Sequence[tuple[Item, Tensor]]) -> Tensor:
    """Return the tensor with the matrices multiplied along their items; gradients go through."""
    for item, matrix in moving:
        sizes = tensor.shape[item.dim : item.dim + item.span]
        flat = tensor.flatten(item.dim, item.dim + item.span - 1)
        new = torch.tensordot(matrix, flat, dims=([1], [item.dim]))
        tensor = new.movedim(0, item.dim).unflatten(item.dim, sizes)
    return tensor


def toward(soft: Soft, other: Mapping[Names, Tensor], step: float) -> Soft:
    """Return the point a fraction `step` of the way to another."""
    return {names: torch.lerp(matrix, other[names].to(matrix.dtype), step) for names, matrix in soft.items()}


def along(gradient: Soft, soft: Soft, other: Soft) -> float:
    """Return the slope of J at a point towards another."""
    return sum(float((g * (other[names] - soft[names]).double()).sum()) for names, g in gradient.items())
