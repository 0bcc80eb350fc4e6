"""Matching blocks together with what is inside them: against every possibility, where they can be counted."""

from __future__ import annotations

from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from merge.alignment.solvers.blocks import Gains, match_blocks


def drawn(shapes: dict[tuple[str, ...], tuple[int, ...]], seed: int) -> dict[tuple[str, ...], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        names: torch.randn(*shape, *shape, generator=generator, dtype=torch.float64) for names, shape in shapes.items()
    }


def worth(gains: Gains, found: dict[str, list]) -> float:
    """Return the total gain of a matching, unit by unit."""
    total = 0.0
    for names, gain in gains.items():
        shape = gain.shape[: gain.ndim // 2]
        for place in product(*map(range, shape)):
            unit = [found[names[0]][place[0]]]
            for level, name in enumerate(names[1:], start=1):
                unit.append(place[level] if name == "-" else found[name][place[0]][place[level]])
            total += float(gain[(*place, *unit)])
    return total


def listed(found: dict[str, Tensor]) -> dict[str, list]:
    return {name: index.tolist() for name, index in found.items()}


def best(gains: Gains, sizes: dict[str, int], blocks: int) -> float:
    """Return the largest gain over all matchings: every order of the blocks with every order inside each of them."""
    (outer,) = {names[0] for names in gains}
    inside = [list(product(permutations(range(n)), repeat=blocks)) for n in sizes.values()]
    return max(
        worth(gains, {outer: list(order), **dict(zip(sizes, orders, strict=True))})
        for order in permutations(range(blocks))
        for orders in product(*inside)
    )


@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        ({("h",): (3,)}, {}),
        ({("h", "-"): (3, 4)}, {}),
        ({("h", "a"): (3, 3)}, {"a": 3}),
        ({("h", "a"): (2, 3), ("h", "b"): (2, 2)}, {"a": 3, "b": 2}),
        ({("h",): (2,), ("h", "-"): (2, 3), ("h", "a"): (2, 3)}, {"a": 3}),
        ({("h", "q", "-"): (2, 3, 2), ("h", "q"): (2, 3), ("h", "-"): (2, 2)}, {"q": 3}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_matching_gains_more(shapes: dict, sizes: dict[str, int], seed: int) -> None:
    """Exact on blocks, on orders inside them, and on both at once."""
    gains = drawn(shapes, seed)
    blocks = next(iter(shapes.values()))[0]
    found = listed(match_blocks(gains))
    assert found.keys() == {"h", *sizes}
    assert worth(gains, found) == pytest.approx(best(gains, sizes, blocks), abs=1e-9)
    still = {"h": list(range(blocks)), **{name: [list(range(n))] * blocks for name, n in sizes.items()}}
    assert worth(gains, still) < worth(gains, found) - 1e-3


GROUPED = {("kv", "queries", "v"): (2, 3, 3), ("kv", "queries", "-"): (2, 3, 2), ("kv", "v"): (2, 3)}


@pytest.mark.parametrize("alone", [True, False])
def test_planted_orders_that_meet_in_one_tensor_are_found(alone: bool) -> None:
    """Query heads and values of grouped queries; also where nothing but the tensor they share tells them apart."""
    kv, queries, v = [1, 0], [[2, 0, 1], [1, 2, 0]], [[1, 2, 0], [0, 2, 1]]
    generator = torch.Generator().manual_seed(3)
    units = torch.randn(2, 3, 3, 400, generator=generator, dtype=torch.float64)
    a = torch.stack([torch.stack([units[kv[k], q][v[k]] for q in queries[k]]) for k in range(2)])
    gains = {("kv", "queries", "v"): torch.einsum("kqix,lpjx->kqilpj", a, units)}
    if alone:
        gains |= {n: 0.1 * g for n, g in drawn(GROUPED, 4).items() if n not in gains}
    assert listed(match_blocks(gains)) == {"kv": kv, "queries": queries, "v": v}


@pytest.mark.parametrize("seed", range(4))
def test_orders_that_meet_are_at_rest(seed: int) -> None:
    """Where two orders meet the result is a coordinate optimum: no other order of one axis in one block gains more."""
    gains = drawn(GROUPED, seed)
    found = listed(match_blocks(gains))
    reached, tried = worth(gains, found), 0
    for name, block in product(("queries", "v"), range(2)):
        for order in permutations(range(3)):
            other = [list(order) if k == block else row for k, row in enumerate(found[name])]
            assert worth(gains, {**found, name: other}) <= reached + 1e-9
            tried += 1
    assert tried == 24
    assert reached > worth(gains, {"kv": [0, 1], "queries": [[0, 1, 2]] * 2, "v": [[0, 1, 2]] * 2})
