"""Match the blocks of a split axis (heads) together with the orders inside them.

Gains are keyed by the names of their levels; the arrays have the levels' sizes twice, positions of A, then units of B:

    (heads,)             blocks alone
    (heads, v)           an order inside each block
    (heads, -)           blocks whose inner order may not move
    (heads, queries, v)  two orders inside each block, of one tensor (grouped queries)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from merge.alignment.solvers.assignment import inner_bound, match_axis, match_heads, match_lazily

Gains = Mapping[tuple[str, ...], Tensor]
Orders = dict[str, Tensor]
MAX_ROUNDS = 20


def match_blocks(gains: Gains) -> dict[str, Int[Tensor, ...]]:
    """Return the matching of blocks and of the orders inside them that gains most.

    The score of a pair of blocks is the gain of its best inner orders; the blocks are matched on that. Exact, because
    different pairs do not interact; where two orders of one block are on one tensor they are improved in turn, until
    neither alone can gain.

    Args:
        gains: names of the levels, the blocks' first and the same for all -> how well units of B fit positions of A.
    Returns:
        axis -> index array: the blocks' of shape (n,), those inside of shape (blocks, n).
    """
    outer, blocks = next((names[0], gain.shape[0]) for names, gain in gains.items())
    inner = list(dict.fromkeys(name for names in gains for name in names[1:] if name != "-"))
    if inner and all(len(names) == 2 and names[1] != "-" for names in gains):
        heads, inside = match_heads([gains[outer, name] for name in inner])
        return {outer: heads, **dict(zip(inner, inside, strict=True))}
    alone, single = _alone(gains, blocks), _single(gains)
    double = {names: gain for names, gain in gains.items() if len(_moving(names)) == 3}
    orders: dict[tuple[int, int], Orders] = {}

    def score(g: int, h: int) -> float:
        orders[g, h], value = _pair(inner, single, double, g, h)
        return float(alone[g, h]) + value

    bound = alone + sum((inner_bound(gain) for gain in single.values()), torch.zeros(()))
    bound += sum((inner_bound(gain.flatten(4).flatten(1, 2)) for gain in double.values()), torch.zeros(()))
    matched = match_lazily(bound, score)
    chosen = [orders[g, h] for g, h in enumerate(matched.tolist())]
    return {outer: matched, **{name: torch.stack([order[name] for order in chosen]) for name in inner}}


def match_inside(gains: Gains, matched: Int[Tensor, " blocks"]) -> dict[str, Int[Tensor, ...]]:
    """Return the best orders inside pairs of blocks that are matched already.

    Args:
        gains: as `match_blocks` takes them.
        matched: position g takes block matched[g] of B.
    """
    outer = next(names[0] for names in gains)
    inner = list(dict.fromkeys(name for names in gains for name in names[1:] if name != "-"))
    single = _single(gains)
    double = {names: gain for names, gain in gains.items() if len(_moving(names)) == 3}
    chosen = [_pair(inner, single, double, g, h)[0] for g, h in enumerate(matched.tolist())]
    return {outer: matched, **{name: torch.stack([order[name] for order in chosen]) for name in inner}}


def _pair(inner: Sequence[str], single: Mapping[str, Tensor], double: Gains, g: int, h: int) -> tuple[Orders, float]:
    """Return the best orders inside one pair of blocks and their gain."""
    pair = {name: gain[g, :, h, :] for name, gain in single.items()}
    joint = {names[1:]: gain[g, :, :, h, :, :] for names, gain in double.items()}
    orders = _match_inside(inner, pair, joint)
    return orders, _score(orders, pair, joint)


def _moving(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name != "-")


def _alone(gains: Gains, blocks: int) -> Float[Tensor, "blocks blocks"]:
    """Return the gain of each pair of blocks that does not depend on the orders inside them."""
    total = torch.zeros(blocks, blocks, dtype=torch.float64)
    for names, gain in gains.items():
        if len(names) == 1:
            total += gain
        elif names[1:] == ("-",):
            total += torch.einsum("gihi->gh", gain)
    return total


def _single(gains: Gains) -> dict[str, Float[Tensor, "blocks n blocks n"]]:
    """Return, for each order inside the blocks, the gains that depend on it alone."""
    out: dict[str, Tensor] = {}
    for names, gain in gains.items():
        if len(_moving(names)) == 2:
            part = torch.einsum("gqihpi->gqhp", gain) if names[-1] == "-" else gain
            out[names[1]] = out[names[1]] + part if names[1] in out else part
    return out


def _match_inside(inner: Sequence[str], single: Mapping[str, Tensor], double: Gains) -> Orders:
    """Return an order for each axis inside one pair of blocks: first on its own gains, then on all until none changes."""
    sizes = {name: len(gain) for name, gain in single.items()}
    for (middle, last), gain in double.items():
        sizes |= {middle: gain.shape[0], last: gain.shape[1]}
    orders = {name: match_axis(single[name]) if name in single else torch.arange(sizes[name]) for name in inner}
    for _ in range(MAX_ROUNDS if double else 0):
        before = dict(orders)
        for name in inner:
            gain = (
                single[name].clone() if name in single else torch.zeros(sizes[name], sizes[name], dtype=torch.float64)
            )
            for (middle, last), both in double.items():
                if name == middle:
                    gain += both.movedim(-1, -2)[:, torch.arange(both.shape[1]), orders[last]].sum(1)
                elif name == last:
                    gain += both[torch.arange(both.shape[0]), :, orders[middle]].sum(0)
            orders[name] = match_axis(gain)
        if all(torch.equal(orders[name], before[name]) for name in inner):
            break
    return orders


def _score(orders: Orders, single: Mapping[str, Tensor], double: Gains) -> float:
    total = sum(float(gain.gather(1, orders[name][:, None]).sum()) for name, gain in single.items())
    for (middle, last), gain in double.items():
        rows, columns = torch.arange(gain.shape[0])[:, None], torch.arange(gain.shape[1])[None]
        total += float(gain[rows, columns, orders[middle][:, None], orders[last][None]].sum())
    return total
