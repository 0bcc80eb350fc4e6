"""Blocks with maps inside: which head is which and how it is turned, against every order of the heads."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.alignment.solvers.blocks_with_maps import Blocks, match_blocks_with_maps, match_coordinate

HEADS, QUERIES, SIZE = 3, 2, 4
QK, V = (("heads", "qk"), "qk"), (("heads", "v"), "v")
GROUPS = {"heads": "permutation", "qk": "linear", "v": "linear", "queries": "permutation"}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nuclear(gain: np.ndarray) -> float:
    return float(np.linalg.svd(gain, compute_uv=False).sum())


def test_the_best_heads_are_those_whose_best_rotations_gain_most() -> None:
    """All six orders by numpy: a rotation is worth the sum of the singular values of its gain."""
    gains = {key: drawn(HEADS, SIZE, HEADS, SIZE, seed=k) for k, key in enumerate((QK, V))}
    alone = drawn(HEADS, HEADS, seed=5)
    found = match_blocks_with_maps(Blocks({**gains, (("heads",), ""): alone}, GROUPS))

    def worth(order: tuple[int, ...]) -> float:
        inside = sum(nuclear(x.numpy()[g, :, h]) for x in gains.values() for g, h in enumerate(order))
        return inside + sum(float(alone[g, h]) for g, h in enumerate(order))

    values = {order: worth(order) for order in itertools.permutations(range(HEADS))}
    best = max(values, key=lambda order: values[order])
    assert tuple(found.indices["heads"].tolist()) == best
    assert found.score == pytest.approx(values[best], abs=1e-9)
    assert len(set(values.values())) == 6
    turned = sum(float((gains[QK][g, :, h] * found.maps["qk"][g]).sum()) for g, h in enumerate(best))
    assert turned == pytest.approx(sum(nuclear(gains[QK].numpy()[g, :, h]) for g, h in enumerate(best)), abs=1e-9)


def test_planted_heads_and_query_heads_are_found() -> None:
    """Grouped queries: the order of the query heads of each group, one turn for the group, and the order of the groups."""
    rows = drawn(HEADS, QUERIES, SIZE, 30, seed=1)
    turn = torch.linalg.qr(drawn(HEADS, SIZE, SIZE, seed=2)).Q
    order, middle = torch.tensor([2, 0, 1]), torch.tensor([[1, 0], [0, 1], [1, 0]])
    # Group h of b is what stands in place g of a, order[g] = h, with its query heads exchanged, in another basis.
    b = torch.empty_like(rows)
    for g, h in enumerate(order.tolist()):
        for q, p in enumerate(middle[g].tolist()):
            b[h, p] = turn[g].mT @ rows[g, q]
    gain = torch.einsum("gqid,hpjd->gqihpj", rows, b)
    found = match_coordinate("heads", {(("heads", "queries", "v"), "v"): gain}, GROUPS)
    assert torch.equal(found.indices["heads"], order)
    assert torch.equal(found.indices["queries"], middle)
    assert torch.allclose(found.maps["v"], turn, atol=1e-9)
    assert found.score == pytest.approx(float(rows.square().sum()), rel=1e-9)
    shuffled = torch.einsum("gqid,hpjd->gqihpj", rows, b.roll(1, 3))
    assert match_coordinate("heads", {(("heads", "queries", "v"), "v"): shuffled}, GROUPS).score < 0.9 * found.score


def test_no_pair_of_heads_gains_more_than_its_bound() -> None:
    """What is not computed because of the bound must not have been the best."""
    blocks = Blocks({key: drawn(HEADS, SIZE, HEADS, SIZE, seed=k) for k, key in enumerate((QK, V))}, GROUPS)
    bound = blocks.bound()
    inside = [[blocks.inside(g, h).score for h in range(HEADS)] for g in range(HEADS)]
    assert bool((torch.tensor(inside, dtype=torch.float64) <= bound + 1e-9).all())
    assert bool((torch.tensor(inside) > 0.5 * bound).all())


def test_an_axis_without_blocks_takes_its_best_element() -> None:
    gain = drawn(5, 5)
    found = match_coordinate("residual", {(("residual",), "residual"): gain}, {"residual": "orthogonal"})
    assert found.score == pytest.approx(nuclear(gain.numpy()), abs=1e-9)
    assert found.indices["residual"].tolist() == list(range(5))
