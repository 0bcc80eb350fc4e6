"""Weight matching: coordinate descent on the inner product of the two models' weights.

Maximises  J(p) = sum_t <A_t, p(B)_t> / (rms(A_t) rms(B_t))  over one axis at a time, everything else held; heads and
what is inside them move together by the two-level assignment. Dividing by the root mean square makes every *entry*
count alike: a tensor weighs as much as it has entries. Vectors are centred first, because a constant (the ones of a
LayerNorm gain) fits every order equally and would only hide what differs.

Source: Ainsworth et al. 2023, arXiv:2209.04836, section 3.2 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.assignment import match_axis, match_heads
from merge.alignment.pair import Alignment, Matcher, Pair, check_kinds
from merge.permutation import Permutation, apply_axes, flat_index, identity

MAX_SWEEPS = 50
# A gain below this share of the objective is rounding, not progress.
TOLERANCE = 1e-12


def match_weights(pair: Pair) -> Matcher:
    """Return the matcher that aligns b to a by weights alone; it needs no data and is deterministic."""
    a = {name: _centred(tensor) for name, tensor in pair.a.items()}
    b = {name: _centred(tensor) for name, tensor in pair.b.items()}
    scale = {name: _scale(a[name], b[name]) for name in a}

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        return _Descent(pair, a, b, scale, pair.axes_of(kinds)).run(tuple(k for k in pair.kinds() if k in kinds))

    return match


def _centred(tensor: Tensor) -> Tensor:
    return tensor - tensor.mean() if tensor.ndim == 1 else tensor


def _scale(a: Tensor, b: Tensor) -> float:
    product = float(a.double().square().mean().sqrt() * b.double().square().mean().sqrt())
    return 1 / product if product > 0 else 0.0


class _Descent:
    """One run of the coordinate descent: the current permutation and each tensor's share of the objective."""

    def __init__(
        self,
        pair: Pair,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        scale: Mapping[str, float],
        movable: tuple[str, ...],
    ) -> None:
        self.spec, self.a, self.b, self.scale, self.movable = pair.spec, a, b, scale, movable
        self.still = identity(pair.spec, pair.shapes)
        self.touching: dict[str, list[tuple[str, int]]] = {}
        for name in a:
            for dim, axis in enumerate(self.spec.axes(name)):
                if axis.block in movable:
                    self.touching.setdefault(str(axis.block), []).append((name, dim))
        self.entries = sum(a[name].numel() for name in a if self._moves(name)) or 1

    def run(self, kinds: tuple[str, ...]) -> Alignment:
        """Start from the better of the identity and a first pass, then sweep until no axis changes."""
        start = self._first_pass()
        current = start if self._objective(start) > self._objective(self.still) else self.still
        objective = [self._objective(p) for p in (self.still, current)]
        for _ in range(MAX_SWEEPS):
            before = current
            for block in self._moves_in_order():
                current = self._improve(current, block)
            if current is before:
                break
            objective.append(self._objective(current))
        return Alignment(current, kinds, tuple(value / self.entries for value in objective))

    def _moves(self, name: str) -> bool:
        return any(axis.block in self.movable for axis in self.spec.axes(name))

    def _moves_in_order(self) -> list[tuple[str, ...]]:
        """Return the coordinates: a plain axis alone, an outer axis with all its inner axes; in the table's order."""
        groups: dict[str, list[str]] = {}
        for block in self.touching:
            groups.setdefault(self.spec.outer.get(block, block), []).append(block)
        return [tuple(blocks) for blocks in groups.values()]

    def _share(self, name: str, p: Permutation) -> float:
        moved = apply_axes(self.spec.axes(name), p, self.b[name])
        return self.scale[name] * float(torch.sum(self.a[name].double() * moved.double()))

    def _objective(self, p: Permutation) -> float:
        return sum(self._share(name, p) for name in self.a if self._moves(name))

    def _gain(self, block: str, p: Permutation, matched: frozenset[str] | None) -> Float[Tensor, "n n"]:
        """Return gain[i, j] of putting b's unit j in place i of this axis, every other axis as p has it.

        Args:
            matched: if given, only tensors whose other axes are fixed or among these count: the order of an axis
                that has not been matched yet says nothing.
        """
        total: Tensor | None = None
        for name, dim in self.touching[block]:
            axes = self.spec.axes(name)
            others = [axis.block for d, axis in enumerate(axes) if d != dim and axis.block in self.movable]
            if matched is not None and any(other not in matched for other in others):
                continue
            moved = self.b[name]
            for d, axis in enumerate(axes):
                index = flat_index(axis, p)
                if d != dim and index is not None:
                    moved = moved.index_select(d, index)
            size = moved.shape[dim]
            rows_a = self.a[name].movedim(dim, 0).reshape(size, -1).double()
            rows_b = moved.movedim(dim, 0).reshape(size, -1).double()
            part = (rows_a @ rows_b.T) * self.scale[name]
            total = part if total is None else total.add_(part)
        if total is None:
            size = self.still.indices[block].numel()
            return torch.zeros(size, size, dtype=torch.float64)
        return total

    def _solve(self, move: tuple[str, ...], p: Permutation, matched: frozenset[str] | None = None) -> Permutation:
        outer = self.spec.outer.get(move[0])
        if outer is None:
            return _with(p, {move[0]: match_axis(self._gain(move[0], p, matched))})
        blocks, gains = self.still.indices[outer].numel(), []
        for inner in move:
            gain = self._gain(inner, p, matched)
            size = len(gain) // blocks
            gains.append(gain.reshape(blocks, size, blocks, size))
        heads, orders = match_heads(gains)
        return _with(p, {outer: heads, **dict(zip(move, orders, strict=True))})

    def _improve(self, p: Permutation, move: tuple[str, ...]) -> Permutation:
        """Return p with this coordinate at its best, or p itself when that gains nothing.

        The comparison is on the tensors themselves: where one axis stands twice in a tensor (the MLM transform) the
        gain matrix is only a linearisation.
        """
        tried = self._solve(move, p)
        touched = dict.fromkeys(name for block in move for name, _ in self.touching[block])
        old = sum(self._share(name, p) for name in touched)
        new = sum(self._share(name, tried) for name in touched)
        return tried if new > old + TOLERANCE * self.entries else p

    def _first_pass(self) -> Permutation:
        """Match each axis in turn against what is already matched: embeddings fix the residual, that the layers."""
        p, matched = self.still, frozenset[str]()
        for move in self._moves_in_order():
            p = self._solve(move, p, matched)
            matched |= set(move)
        return p


def _with(p: Permutation, indices: Mapping[str, Tensor]) -> Permutation:
    return Permutation({**p.indices, **indices}, p.outer)
