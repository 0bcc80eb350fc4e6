"""MappedDescent: a pair of models, b rewritten step by step until it is as near to a as the symmetries let it come.

    J = 1 - |A - B|^2 / (|A|^2 + |B|^2) = 2 <A, B> / (|A|^2 + |B|^2)

over all tensors that move; 1 says that b has become a. Every step is the best one along one axis, or along blocks and
what is inside them, from where b stands, and is taken only if it gains. Where a group stretches there are two such steps,
and the one that gains more is taken: the best rotation of b as it is, and the best one between both models balanced,

    (balance of a)^-1 . rotation . (balance of b),

which finds b however it was stretched, and fits less well where it was not. Vectors are centred, because a constant fits
every order alike, but not where that would not commute with the maps.
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

# Groups that leave the mean of a vector where it is. A sign turns it: gains of one against gains of minus one cancel half
# way, and that has to count.
KEEP_MEAN = frozenset({"permutation", "none", "orthogonal_one"})
ROTATIONS = frozenset({"orthogonal", "orthogonal_one"})

Tensors = Mapping[str, Tensor]


def wants_maps(pair: Pair) -> bool:
    """Return whether maps were asked for: bases inside heads, or a residual stream that may be rotated."""
    return pair.settings.basis == "orthogonal" or any(_rotates(pair, axis) for axis in pair.movable)


def _rotates(pair: Pair, axis: str) -> bool:
    """Return whether an axis is a stream of a model whose norms are folded: then it is to be rotated."""
    kind = pair.spec.kind(axis)
    return pair.spec.group(axis) in ROTATIONS and kind in streams((kind,))


def acting_groups(pair: Pair, kinds: frozenset[str]) -> dict[str, str]:
    """Return axis of these kinds -> the group that acts on it as the settings ask: permutations alone, but for streams."""
    found = {}
    for axis in axis_sizes(pair.spec, pair.shapes):
        if pair.spec.kind(axis) in kinds and axis not in pair.spec.named:
            plain = "permutation" if axis in pair.movable else "none"
            whole = pair.settings.basis == "orthogonal" or _rotates(pair, axis)
            found[axis] = pair.spec.group(axis) if whole else plain
    return found


class MappedDescent:
    """A pair on its way.

    Attributes:
        steps: what brought b where it is.
        moves: what can be moved, one at a time, in the order of the table.
    """

    def __init__(self, pair: Pair, kinds: frozenset[str], steps: Transform | None = None) -> None:
        self.spec, self.groups, self.device = pair.spec, acting_groups(pair, kinds), pair.device
        self.still = identity(pair.spec, pair.shapes)
        self.transform = steps or Transform(self.still, {})
        b = apply_transform(pair.spec, self.transform, pair.b) if steps else pair.b
        self.occurrences = occurrences(pair, pair.axes_of(kinds))
        self.coordinates = tuple(self.occurrences)
        self.tensors = {m: tuple(dict.fromkeys(t.tensor for t in own)) for m, own in self.occurrences.items()}
        moving = dict.fromkeys(name for own in self.tensors.values() for name in own)
        self.a, self.b = ({n: self._centred(n, side[n]) for n in moving} for side in (pair.a, b))
        self.inner = {name: dot(self.a[name], self.b[name]) for name in moving}
        self.squares = {name: dot(self.b[name], self.b[name]) for name in moving}
        self.square_a = math.fsum(dot(self.a[name], self.a[name]) for name in moving)

    def _centred(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.ndim != 1 or not tensor.is_floating_point():
            return tensor
        views = (view for along in self.spec.views(name, tuple(tensor.shape)) for view in along)
        acting = {self.groups.get(view.map_axis, "none") for view in views if view.role != "="}
        return tensor - tensor.mean() if acting <= KEEP_MEAN else tensor

    @property
    def value(self) -> float:
        """J."""
        return _nearness(self.inner, self.squares, self.square_a)

    def axes_of(self, move: str) -> frozenset[str]:
        """Return the axes that move together: the blocks' and those inside them."""
        names = {
            name
            for occurrence in self.occurrences[move]
            for name in (*occurrence.view.movable, occurrence.view.map_axis)
        }
        return frozenset(names & self.groups.keys())

    def shuffled(self, generator: torch.Generator) -> Transform:
        """Return what brought b here, followed by a shuffle of some units of the busiest axis."""
        axis = busiest(self.tensors)
        units = shuffled(self.still.indices[axis], generator)
        shuffle = Permutation({**self.still.indices, axis: units}, self.still.outer)
        return compose(Transform(shuffle, {}), self.transform)

    def sweep(self, order: Sequence[str]) -> bool:
        """Take the best step along each coordinate in turn; return whether any was taken."""
        steps = [self.improve(move) for move in order]
        return any(steps)

    def improve(self, move: str, matched: Collection[str] | None = None) -> bool:
        """Take the best step along one coordinate; return whether one was taken.

        Args:
            matched: if given, only tensors whose other axes are fixed or among these say what is best, and the step is
                taken whether or not it gains on all.
        """
        own = [
            occurrence
            for occurrence in self.occurrences[move]
            if matched is None or occurrence.others <= frozenset(matched)
        ]
        if not own:
            return False
        best, value = None, self.value if matched is None else -math.inf
        for step in self._steps(move, own):
            new = {name: apply_transform_axes(self.spec.axes(name), step, self.b[name]) for name in self.tensors[move]}
            inner = self.inner | {name: dot(self.a[name], tensor) for name, tensor in new.items()}
            squares = self.squares | {name: dot(tensor, tensor) for name, tensor in new.items()}
            if (gained := _nearness(inner, squares, self.square_a)) > value:
                best, value = (step, new, inner, squares), gained
        if best is None:
            return False
        self.transform = compose(best[0], self.transform)
        self.b |= best[1]
        self.inner, self.squares = best[2:]
        return True

    def _steps(self, move: str, own: Sequence[Occurrence]) -> list[Transform]:
        """Return the best steps along a coordinate: of b as it is, and between balanced models where a group stretches."""
        found = [self._step(move, own, self.a, self.b)]
        stretched = {axis: self.groups[axis] for axis in self.axes_of(move) if self.groups[axis] in BALANCES}
        if stretched:
            sides = [{name: side[name] for name in self.tensors[move]} for side in (self.a, self.b)]
            to = [balance(self.spec, side, stretched, self.still) for side in sides]
            a, b = (apply_transform(self.spec, t, side) for t, side in zip(to, sides, strict=True))
            found.append(compose(inverse(to[0]), compose(self._step(move, own, a, b), to[1])))
        return found

    def _step(self, move: str, own: Sequence[Occurrence], a: Tensors, b: Tensors) -> Transform:
        """Return the best step that stretches nothing."""
        gains: dict[Slot, Tensor] = {}
        for occurrence in own:
            view = occurrence.view
            slot = (view.names, view.map_axis if view.role != "=" and view.map_axis in self.groups else "")
            one, other = (_rows(self.spec, occurrence, side[occurrence.tensor]).to(self.device) for side in (a, b))
            product = (one @ other.T).cpu().double().reshape(*view.shape, *view.shape)
            gains[slot] = gains[slot] + product if slot in gains else product
        found = match_coordinate(move, gains, self.groups)
        known = {axis: index for axis, index in found.indices.items() if axis in self.still.indices}
        return Transform(Permutation({**self.still.indices, **known}, self.still.outer), found.maps)


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
    return 2 * math.fsum(inner.values()) / (square_a + math.fsum(squares.values()) or 1.0)
