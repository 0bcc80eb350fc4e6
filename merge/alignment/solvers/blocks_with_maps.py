"""Matching the blocks of a split axis where maps act inside them: heads, whose bases turn.

As `solvers.blocks`, but the best element of its own group stands inside each pair of blocks: of queries and keys a
rotation, of rotary pairs a phase. Every pair is worth what its best elements gain, and the blocks are matched on that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.solvers.assignment import match_axis, match_lazily
from merge.alignment.solvers.group_elements import Element, best_element, score_bound

# The names of a view's levels, and the axis whose maps act on the innermost; empty where none does.
Slot = tuple[tuple[str, ...], str]
MAX_ROUNDS = 20


@dataclass(frozen=True)
class Inside:
    """What stands inside a pair of blocks: an order of the level in the middle, where there is one, and elements."""

    middle: Tensor | None
    elements: Mapping[str, Element]
    worth: float


@dataclass(frozen=True)
class Blocks:
    """Gains of the blocks of one axis.

    Attributes:
        gains: slot -> array with the levels' sizes twice: a's places, then b's units; float64.
        groups: axis inside -> the group that acts on it.
    """

    gains: Mapping[Slot, Tensor]
    groups: Mapping[str, str]

    @property
    def outer(self) -> str:
        return next(names[0] for names, _ in self.gains)

    @property
    def middle(self) -> str | None:
        """The level between the blocks and the units inside (the query heads of a group)."""
        return next((names[1] for names, _ in self.gains if len(names) == 3), None)

    @cached_property
    def alone(self) -> Float[Tensor, "blocks blocks"]:
        """What a pair of blocks gains whatever stands inside."""
        blocks = next(iter(self.gains.values())).shape[0]
        total = torch.zeros(blocks, blocks, dtype=torch.float64)
        for (names, acting), gain in self.gains.items():
            if len(names) == 1:
                total += gain
            elif len(names) == 2 and not acting:
                total += torch.einsum("gihi->gh", gain)
        return total

    @cached_property
    def single(self) -> dict[str, Float[Tensor, "blocks blocks n n"]]:
        """Axis inside -> gains that depend on it alone."""
        found = ((acting, gain) for (names, acting), gain in self.gains.items() if len(names) == 2 and acting)
        return {acting: gain.movedim(1, 2) for acting, gain in found if acting != self.middle}

    @cached_property
    def ordered(self) -> Float[Tensor, "blocks blocks m m"] | None:
        """Gains that depend on the middle level alone."""
        total = None
        for (names, acting), gain in self.gains.items():
            if len(names) == 2 and acting == self.middle:
                part = gain.movedim(1, 2)
            elif len(names) == 3 and not acting:
                part = torch.einsum("gqihpi->ghqp", gain)
            else:
                continue
            total = part if total is None else total + part
        return total

    @cached_property
    def double(self) -> dict[str, Float[Tensor, "blocks blocks m m n n"]]:
        """Axis inside -> gains that depend on it and on the middle level."""
        found = ((acting, gain) for (names, acting), gain in self.gains.items() if len(names) == 3 and acting)
        return {acting: gain.permute(0, 3, 1, 4, 2, 5) for acting, gain in found}

    def bound(self) -> Float[Tensor, "blocks blocks"]:
        """Return what no pair of blocks can be worth more than."""
        total = self.alone.clone()
        for axis, gain in self.single.items():
            total += score_bound(self.groups[axis], gain)
        if self.middle is not None:
            each = sum((score_bound(self.groups[axis], gain) for axis, gain in self.double.items()), torch.zeros(()))
            each = each if self.ordered is None else each + self.ordered
            total += each.amax(-1).sum(-1)
        return total

    def inside(self, g: int, h: int) -> Inside:
        """Return the best that can stand inside block g of a and block h of b."""
        single = {axis: gain[g, h] for axis, gain in self.single.items()}
        if self.middle is None:
            elements = {axis: best_element(self.groups[axis], gain) for axis, gain in single.items()}
            return Inside(None, elements, sum(elements[axis].worth(gain) for axis, gain in single.items()))
        double = {axis: gain[g, h] for axis, gain in self.double.items()}
        size = next(iter(double.values())).shape[0] if double else 0
        fixed = torch.zeros(size, size, dtype=torch.float64) if self.ordered is None else self.ordered[g, h]
        first = sum((score_bound(self.groups[axis], gain) for axis, gain in double.items()), fixed)
        found, best = match_axis(first), Inside(None, {}, float("-inf"))
        for _ in range(MAX_ROUNDS):
            tried = self._around(found, single, double, fixed)
            if best.middle is not None and tried.worth <= best.worth:
                break
            best = tried
            gain = fixed.clone()
            for axis, each in double.items():
                gain += _worths(tried.elements[axis], each)
            found = match_axis(gain)
        return best

    def _around(
        self, middle: Tensor, single: Mapping[str, Tensor], double: Mapping[str, Tensor], fixed: Tensor
    ) -> Inside:
        """Return the best elements around an order of the middle level."""
        rows, totals = torch.arange(len(middle)), dict(single)
        for axis, gain in double.items():
            met = gain[rows, middle].sum(0)
            totals[axis] = totals[axis] + met if axis in totals else met
        elements = {axis: best_element(self.groups[axis], gain) for axis, gain in totals.items()}
        worth = sum(elements[axis].worth(gain) for axis, gain in totals.items()) + float(fixed[rows, middle].sum())
        return Inside(middle, elements, worth)


def _worths(element: Element, gains: Float[Tensor, "m m n n"]) -> Float[Tensor, "m m"]:
    taken = gains[..., element.index]
    if element.map is None or element.map.ndim == 1:
        diagonal = taken.diagonal(dim1=-2, dim2=-1)
        return (diagonal if element.map is None else diagonal * element.map).sum(-1)
    return (taken * element.map).sum((-1, -2))


@dataclass(frozen=True)
class Matched:
    """Index arrays of the blocks and of what is inside them, the maps inside, in the new order, and what all gain."""

    indices: Mapping[str, Tensor]
    maps: Mapping[str, Tensor]
    worth: float


def match_blocks_with_maps(blocks: Blocks, which: Tensor | None = None) -> Matched:
    """Return the matching of blocks, and of what is inside them, that gains most.

    Args:
        which: place g takes block which[g] of b; matched if None.
    """
    found: dict[tuple[int, int], Inside] = {}

    def worth(g: int, h: int) -> float:
        found[g, h] = blocks.inside(g, h)
        return float(blocks.alone[g, h]) + found[g, h].worth

    matched = match_lazily(blocks.bound(), worth) if which is None else which
    chosen = [found[g, h] if (g, h) in found else blocks.inside(g, h) for g, h in enumerate(matched.tolist())]
    indices = {blocks.outer: matched}
    if blocks.middle is not None:
        indices[blocks.middle] = torch.stack([one.middle for one in chosen if one.middle is not None])
    maps = {}
    for axis in chosen[0].elements:
        elements = [one.elements[axis] for one in chosen]
        indices[axis] = torch.stack([element.index for element in elements])
        if (stacked := _stacked(elements)) is not None:
            maps[axis] = stacked
    alone = float(blocks.alone.gather(1, matched[:, None]).sum())
    return Matched(indices, maps, alone + sum(one.worth for one in chosen))


def match_single_axis(group: str, gain: Float[Tensor, "n n"], held: Float[Tensor, "n n"] | None, axis: str) -> Matched:
    """Return the same of an axis that has no blocks: its best element."""
    element = best_element(group, gain, held)
    worth = element.worth(gain) + (0.0 if held is None else float(held.gather(1, element.index[:, None]).sum()))
    return Matched({axis: element.index}, {} if element.map is None else {axis: element.map}, worth)


def match_coordinate(move: str, gains: Mapping[Slot, Tensor], groups: Mapping[str, str]) -> Matched:
    """Return what gains most along one coordinate: an axis alone, or blocks together with what is inside them.

    Args:
        gains: slot -> gains; those of what is permuted along and takes no map have no acting axis.
    """
    plain, held = ((move,), move), ((move,), "")
    if set(gains) <= {plain, held}:
        gain = gains[plain] if plain in gains else torch.zeros_like(gains[held])
        return match_single_axis(groups[move], gain, gains.get(held), move)
    return match_blocks_with_maps(Blocks(gains, groups))


def _stacked(elements: list[Element]) -> Tensor | None:
    """Return the maps of all blocks, of one kind; None where no block has one."""
    n, given = len(elements[0].index), [element.map for element in elements if element.map is not None]
    if not given:
        return None
    one = torch.ones(n, dtype=torch.float64)
    one = one.diag() if given[0].ndim == 2 else one
    return torch.stack([one if element.map is None else element.map for element in elements])
