"""Match the blocks of a split axis where maps act inside them: heads, whose bases may be rotated.

As `merge.alignment.solvers.blocks`, but inside each pair of blocks the best element of the group acts: a rotation of queries
and keys, a phase of rotary pairs. The score of a pair of blocks is the gain of its best elements, and the blocks are matched
on that. The two are not one: with permutations alone the orders inside a pair improve in turn from those that are best
alone, here around an order of the query heads, and the results may differ.
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
class BlockElements:
    """The best elements inside a pair of blocks.

    Attributes:
        middle: order of the middle level (query heads), where there is one.
        elements: axis inside -> the element that acts on it.
        score: what all of them gain.
    """

    middle: Tensor | None
    elements: Mapping[str, Element]
    score: float


@dataclass(frozen=True)
class Blocks:
    """Gains of the blocks of one axis.

    Attributes:
        gains: slot -> array with the levels' sizes twice: positions, then b's units; float64.
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
        """Gain of a pair of blocks that does not depend on anything inside."""
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
        gains = ((acting, gain) for (names, acting), gain in self.gains.items() if len(names) == 2 and acting)
        return {acting: gain.movedim(1, 2) for acting, gain in gains if acting != self.middle}

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
        gains = ((acting, gain) for (names, acting), gain in self.gains.items() if len(names) == 3 and acting)
        return {acting: gain.permute(0, 3, 1, 4, 2, 5) for acting, gain in gains}

    def bound(self) -> Float[Tensor, "blocks blocks"]:
        """Return an upper bound of the score of every pair of blocks."""
        total = self.alone.clone()
        for axis, gain in self.single.items():
            total += score_bound(self.groups[axis], gain)
        if self.middle is not None:
            each = sum((score_bound(self.groups[axis], gain) for axis, gain in self.double.items()), torch.zeros(()))
            each = each if self.ordered is None else each + self.ordered
            total += each.amax(-1).sum(-1)
        return total

    def inside(self, g: int, h: int) -> BlockElements:
        """Return the best elements inside block g of a and block h of b."""
        single = {axis: gain[g, h] for axis, gain in self.single.items()}
        if self.middle is None:
            elements = {axis: best_element(self.groups[axis], gain) for axis, gain in single.items()}
            return BlockElements(None, elements, sum(elements[axis].score(gain) for axis, gain in single.items()))
        double = {axis: gain[g, h] for axis, gain in self.double.items()}
        size = next(iter(double.values())).shape[0] if double else 0
        fixed = torch.zeros(size, size, dtype=torch.float64) if self.ordered is None else self.ordered[g, h]
        first = sum((score_bound(self.groups[axis], gain) for axis, gain in double.items()), fixed)
        middle, best = match_axis(first), BlockElements(None, {}, float("-inf"))
        for _ in range(MAX_ROUNDS):
            candidate = self._around(middle, single, double, fixed)
            if best.middle is not None and candidate.score <= best.score:
                break
            best = candidate
            gain = fixed.clone()
            for axis, each in double.items():
                gain += _scores(candidate.elements[axis], each)
            middle = match_axis(gain)
        return best

    def _around(
        self, middle: Tensor, single: Mapping[str, Tensor], double: Mapping[str, Tensor], fixed: Tensor
    ) -> BlockElements:
        """Return the best elements for a given order of the middle level."""
        rows, totals = torch.arange(len(middle)), dict(single)
        for axis, gain in double.items():
            matched = gain[rows, middle].sum(0)
            totals[axis] = totals[axis] + matched if axis in totals else matched
        elements = {axis: best_element(self.groups[axis], gain) for axis, gain in totals.items()}
        score = sum(elements[axis].score(gain) for axis, gain in totals.items()) + float(fixed[rows, middle].sum())
        return BlockElements(middle, elements, score)


def _scores(element: Element, gains: Float[Tensor, "m m n n"]) -> Float[Tensor, "m m"]:
    """Return the score of an element on many gains at once."""
    taken = gains[..., element.index]
    if element.map is None or element.map.ndim == 1:
        diagonal = taken.diagonal(dim1=-2, dim2=-1)
        return (diagonal if element.map is None else diagonal * element.map).sum(-1)
    return (taken * element.map).sum((-1, -2))


@dataclass(frozen=True)
class Matching:
    """The best assignment along one coordinate.

    Attributes:
        indices: axis -> index array, of the blocks and of the axes inside them.
        maps: axis inside -> its maps, in the new order.
        score: what all of it gains.
    """

    indices: Mapping[str, Tensor]
    maps: Mapping[str, Tensor]
    score: float


def match_blocks_with_maps(blocks: Blocks) -> Matching:
    """Return the matching of blocks, and of the axes inside them, that gains most."""
    inside: dict[tuple[int, int], BlockElements] = {}

    def score(g: int, h: int) -> float:
        inside[g, h] = blocks.inside(g, h)
        return float(blocks.alone[g, h]) + inside[g, h].score

    matched = match_lazily(blocks.bound(), score)
    chosen = [inside[g, h] for g, h in enumerate(matched.tolist())]
    indices = {blocks.outer: matched}
    if blocks.middle is not None:
        indices[blocks.middle] = torch.stack([block.middle for block in chosen if block.middle is not None])
    maps = {}
    for axis in chosen[0].elements:
        elements = [block.elements[axis] for block in chosen]
        indices[axis] = torch.stack([element.index for element in elements])
        if (stacked := _stacked(elements)) is not None:
            maps[axis] = stacked
    alone = float(blocks.alone.gather(1, matched[:, None]).sum())
    return Matching(indices, maps, alone + sum(block.score for block in chosen))


def match_single_axis(group: str, gain: Float[Tensor, "n n"], held: Float[Tensor, "n n"] | None, axis: str) -> Matching:
    """Return the best element of an axis without blocks.

    Args:
        held: gains of what is permuted with the axis and takes no map.
    """
    element = best_element(group, gain, held)
    score = element.score(gain) + (0.0 if held is None else float(held.gather(1, element.index[:, None]).sum()))
    return Matching({axis: element.index}, {} if element.map is None else {axis: element.map}, score)


def match_coordinate(coordinate: str, gains: Mapping[Slot, Tensor], groups: Mapping[str, str]) -> Matching:
    """Return what gains most along one coordinate: an axis alone, or blocks together with the axes inside them.

    Args:
        gains: slot -> gains; the slots of what is permuted with the axis and takes no map have no acting axis.
    """
    mapped, held = ((coordinate,), coordinate), ((coordinate,), "")
    if set(gains) <= {mapped, held}:
        gain = gains[mapped] if mapped in gains else torch.zeros_like(gains[held])
        return match_single_axis(groups[coordinate], gain, gains.get(held), coordinate)
    return match_blocks_with_maps(Blocks(gains, groups))


def _stacked(elements: list[Element]) -> Tensor | None:
    """Return the maps of all blocks, all diagonals or all matrices; None where no block has one."""
    n, maps = len(elements[0].index), [element.map for element in elements if element.map is not None]
    if not maps:
        return None
    unit = torch.ones(n, dtype=torch.float64)
    unit = unit.diag() if maps[0].ndim == 2 else unit
    return torch.stack([unit if element.map is None else element.map for element in elements])
