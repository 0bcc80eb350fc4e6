"""Frame: a pair in which both models are balanced, and b is brought to a step by step.

    J = sum_t <A_t, B_t> / (rms(A_t) rms(B_t))

is the objective of weight matching over tensors as they are now: b's are rewritten with every step, so that each step is
the best one from where it stands. Steps stretch nothing, so that no rms changes. In the end

    found = (balance of a)^-1 . steps . (balance of b)

acts on b as it was given. Vectors are centred as in weight matching, but not where that would not commute with the maps.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from merge.alignment.balance import balance
from merge.alignment.objective import CHUNK, Objective, Touch, Weights
from merge.alignment.pair import Pair
from merge.alignment.turned_blocks import Slot, match_move
from merge.permutation import Permutation, identity
from merge.transform import Transform, apply_transform, apply_transform_axes, axis_sizes, compose, inverse

# Groups that leave the mean of a vector where it is, or turn all of it.
KEEP_MEAN = frozenset({"permutation", "none", "sign", "orthogonal_one"})
ROTATIONS = frozenset({"orthogonal", "orthogonal_one"})
# A map that differs from the identity by less is rounding.
ROUNDING = 1e-9


def turns(pair: Pair) -> bool:
    """Return whether maps were asked for: bases inside heads, or a residual stream that may be rotated."""
    return pair.settings.basis == "orthogonal" or any(
        pair.spec.group(axis) in ROTATIONS for axis in axis_sizes(pair.spec, pair.shapes)
    )


def acting_groups(pair: Pair, kinds: frozenset[str]) -> dict[str, str]:
    """Return axis of these kinds -> the group that acts on it as the settings ask: permutations alone, but for rotations."""
    found = {}
    for axis in axis_sizes(pair.spec, pair.shapes):
        group = pair.spec.group(axis)
        if pair.spec.kind(axis) in kinds and axis not in pair.spec.named:
            plain = "permutation" if axis in pair.movable else "none"
            found[axis] = group if pair.settings.basis == "orthogonal" or group in ROTATIONS else plain
    return found


class Balanced:
    """Both models of a pair in balance on the axes that move."""

    def __init__(self, pair: Pair, kinds: frozenset[str]) -> None:
        self.given, self.groups = pair, acting_groups(pair, kinds)
        self.movable = pair.axes_of(kinds)
        self.to_a, self.to_b = (balance(pair.spec, side, self.groups) for side in (pair.a, pair.b))
        a, b = (apply_transform(pair.spec, t, x) for t, x in ((self.to_a, pair.a), (self.to_b, pair.b)))
        self.pair = replace(pair, a=a, b=b)

    def whole(self, steps: Transform) -> Transform:
        """Return what steps between balanced models do to b as it was given; maps that are the identity are left out."""
        found = compose(inverse(self.to_a), compose(steps, self.to_b))
        return Transform(found.permutation, {x: m for x, m in found.maps.items() if not _is_identity(m, x, found)})


def _is_identity(mapped: Tensor, axis: str, t: Transform) -> bool:
    inside = axis in t.permutation.outer
    diagonal = mapped.ndim == (2 if inside else 1)
    one = torch.ones_like(mapped) if diagonal else torch.eye(mapped.shape[-1], dtype=mapped.dtype)
    return bool((mapped - one).abs().max() < ROUNDING)


class Frame:
    """Balanced models, b where the steps so far have brought it, and J."""

    def __init__(self, balanced: Balanced, steps: Transform | None = None) -> None:
        pair = balanced.pair
        self.spec, self.groups, self.still = pair.spec, balanced.groups, identity(pair.spec, pair.shapes)
        self.steps = steps or Transform(self.still, {})
        b = apply_transform(pair.spec, self.steps, pair.b) if steps else dict(pair.b)
        self.a, self.b = ({n: self._centred(n, t) for n, t in side.items()} for side in (pair.a, b))
        scales = ({n: _scale(t) for n, t in side.items()} for side in (self.a, self.b))
        weights = Weights(self.a, self.b, *scales)
        self.objective = Objective(replace(pair, a=self.a, b=self.b), weights, balanced.movable)
        self.moves = tuple(self.objective.touches)
        self.shares = {name: self._share(name, self.b[name]) for name in self.objective.moving}

    def _centred(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.ndim != 1 or not tensor.is_floating_point():
            return tensor
        views = (view for along in self.spec.views(name, tuple(tensor.shape)) for view in along)
        acting = {self.groups.get(view.acting, "none") for view in views if view.role != "="}
        return tensor - tensor.mean() if acting <= KEEP_MEAN else tensor

    def _share(self, name: str, b: Tensor) -> float:
        pieces = zip(self.a[name].reshape(-1).split(CHUNK), b.reshape(-1).split(CHUNK), strict=True)
        return self.objective.weights.scale(name) * sum(float(torch.dot(x.double(), y.double())) for x, y in pieces)

    @property
    def value(self) -> float:
        """J, per entry of the tensors that move."""
        return math.fsum(self.shares.values()) / self.objective.entries

    def others(self, move: str) -> frozenset[str]:
        """Return the axes that the gains of this one depend on."""
        return frozenset().union(*(touch.others for touch in self.objective.touches[move]))

    def axes_of(self, move: str) -> tuple[str, ...]:
        return self.objective.axes_of(move)

    def improve(self, move: str, matched: Collection[str] | None = None) -> bool:
        """Move an axis, or blocks and what is inside them, to its best place; return whether that gained anything.

        Args:
            matched: if given, only tensors whose other axes are fixed or among these say what is best, and the step is
                taken whether or not it gains on all.
        """
        touches = self.objective.touches[move]
        if matched is not None:
            touches = [touch for touch in touches if touch.others <= frozenset(matched)]
        if not touches:
            return False
        step = self._step(move, touches)
        names = self.objective.tensors[move]
        new = {name: self._moved(name, step) for name in names}
        shares = {name: self._share(name, tensor) for name, tensor in new.items()}
        if matched is None and math.fsum(shares.values()) <= math.fsum(self.shares[name] for name in names):
            return False
        self.b |= new
        self.shares |= shares
        self.steps = compose(step, self.steps)
        return True

    def _moved(self, name: str, step: Transform) -> Tensor:
        return apply_transform_axes(self.spec.axes(name), step, self.b[name])

    def _step(self, move: str, touches: list[Touch]) -> Transform:
        """Return the best step along one coordinate."""
        found = match_move(move, self._gains(touches), self.groups)
        known = {axis: index for axis, index in found.indices.items() if axis in self.still.indices}
        return Transform(Permutation({**self.still.indices, **known}, self.still.outer), found.maps)

    def _gains(self, touches: list[Touch]) -> dict[Slot, Tensor]:
        """Return, by slot, how well b's units fill a's places."""
        objective, found = self.objective, dict[Slot, Tensor]()
        for touch in touches:
            view = touch.view
            acting = view.acting if view.role != "=" and view.acting in self.groups else ""
            a, b = (objective.rows(touch, side, None) for side in "ab")
            scale = objective.weights.scale(touch.tensor)
            product = (a @ b.T).double().reshape(*view.shape, *view.shape) * scale
            slot = (view.names, acting)
            found[slot] = found[slot] + product if slot in found else product
        return found


def _scale(tensor: Tensor) -> float:
    total = sum(float(piece.double().square().sum()) for piece in tensor.reshape(-1).split(CHUNK))
    return math.sqrt(tensor.numel() / total) if total > 0 else 0.0
