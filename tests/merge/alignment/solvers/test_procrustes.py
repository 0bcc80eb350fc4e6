"""Maps in closed form: planted ones are found, they are best, and what a head shows stays what it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.alignment.solvers.procrustes import balancing, balancing_whole, orthogonal, rotation_fixing_ones
from merge.errors import AlignmentError

HEADS, SIZE, WIDTH = 3, 6, 20


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotations(*shape: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(drawn(*shape, shape[-1], seed=seed)).Q


def test_a_planted_basis_of_every_head_is_found() -> None:
    """b is a in another orthogonal basis, queries and keys in the same; a shared basis moves the keys by G^-T = G."""
    q, k, planted = drawn(HEADS, SIZE, WIDTH), drawn(HEADS, SIZE, WIDTH, seed=1), rotations(HEADS, SIZE, seed=2)
    gain = q @ (planted.mT @ q).mT + k @ (planted.mT @ k).mT
    assert torch.allclose(orthogonal(gain), planted, atol=1e-10)
    assert not torch.allclose(orthogonal(drawn(HEADS, SIZE, SIZE, seed=3)), planted, atol=0.1)


def test_no_orthogonal_map_gains_more() -> None:
    """The maximum is the sum of the singular values; random orthogonal matrices stay below it."""
    gain = drawn(SIZE, SIZE)
    best = float((gain * orthogonal(gain)).sum())
    assert best == pytest.approx(float(np.linalg.svd(gain.numpy(), compute_uv=False).sum()), abs=1e-10)
    assert all(float((gain * rotations(SIZE, seed=seed)).sum()) < best - 1e-3 for seed in range(50))


def balanced(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    g = balancing(x, y)
    return g @ x, torch.linalg.inv(g).mT @ y


def test_balanced_heads_show_the_same_and_weigh_alike() -> None:
    """x^T y is unchanged, both factors have equal Gram matrices, and these are the singular values of x^T y."""
    x, y = 5 * drawn(HEADS, SIZE, WIDTH), drawn(HEADS, SIZE, WIDTH + 3, seed=1)
    new_x, new_y = balanced(x, y)
    values = np.linalg.svd((x.mT @ y).numpy(), compute_uv=False)[:, :SIZE]
    assert torch.allclose(new_x.mT @ new_y, x.mT @ y, atol=1e-10)
    for new in (new_x, new_y):
        assert np.abs((new @ new.mT).numpy() - np.stack([np.diag(v) for v in values])).max() < 1e-9
    assert float((x @ x.mT - y @ y.mT).abs().min(0).values.max()) > 1


def test_balancing_makes_one_of_all_bases() -> None:
    """A random invertible map inside a head is undone but for signs; without balancing the factors differ."""
    x, y, planted = drawn(HEADS, SIZE, WIDTH), drawn(HEADS, SIZE, WIDTH, seed=1), drawn(HEADS, SIZE, SIZE, seed=2)
    other_x, other_y = planted @ x, torch.linalg.inv(planted).mT @ y
    here, there = balanced(x, y)[0], balanced(other_x, other_y)[0]
    assert torch.allclose(here.abs(), there.abs(), atol=1e-8)
    assert not torch.allclose(x.abs(), other_x.abs(), atol=0.1)


def test_a_head_that_does_not_use_a_direction_is_an_error() -> None:
    x, y = drawn(HEADS, SIZE, WIDTH), drawn(HEADS, SIZE, WIDTH, seed=1)
    x[1, 2] = x[1, 3]
    with pytest.raises(AlignmentError, match="head 1 does not use all of its 6 directions"):
        balancing(x, y)


def test_a_planted_rotation_that_fixes_the_ones_is_found() -> None:
    """Its ones stay ones exactly; a gain whose best rotation would move them gives another one."""
    d = 12
    start = torch.cat([torch.ones(d, 1).double(), drawn(d, d - 1)], 1)
    basis = torch.linalg.qr(start).Q
    planted = basis[:, 1:] @ rotations(d - 1, seed=1) @ basis[:, 1:].T + 1 / d
    a = drawn(d, 40, seed=2)
    found = rotation_fixing_ones(a @ (planted.T @ a).T)
    assert torch.allclose(found, planted, atol=1e-10)
    other = rotations(d, seed=3)
    best = rotation_fixing_ones(a @ (other.T @ a).T)
    assert torch.allclose(best @ torch.ones(d).double(), torch.ones(d).double(), atol=1e-12)
    assert torch.allclose(best @ best.T, torch.eye(d).double(), atol=1e-12)
    assert not torch.allclose(other @ torch.ones(d).double(), torch.ones(d).double(), atol=0.1)


def test_the_rotation_is_the_one_of_the_centred_gain() -> None:
    """On a gain of full rank: U V^T of C gain C with its null direction sent to itself, computed in numpy."""
    d = 9
    gain = drawn(d, d).numpy()
    centre = np.eye(d) - 1 / d
    u, s, vh = np.linalg.svd(centre @ gain @ centre)
    assert s[-1] < 1e-12 < s[-2]
    expected = u[:, :-1] @ vh[:-1] + 1 / d
    assert np.abs(rotation_fixing_ones(torch.as_tensor(gain)).numpy() - expected).max() < 1e-10
    assert np.abs(orthogonal(torch.as_tensor(gain)).numpy() - expected).max() > 0.05


@pytest.mark.parametrize("share", [0.5, 1e-5])
def test_products_of_rows_balance_as_the_factors_do(share: float) -> None:
    """The maps are those of QR up to the sign of each row, also of a head whose products would cost too many digits."""
    x, y = drawn(HEADS, SIZE, WIDTH), drawn(HEADS, SIZE, WIDTH + 3, seed=1)
    x[1, 0] *= share
    y[1, 0] /= share
    expected, maps = balancing(x, y), balancing_whole(x, y, 1e-4)
    signs = (expected * maps).sum(-1, keepdim=True).sign()
    assert torch.allclose(signs * maps, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert not torch.allclose(maps[1], torch.eye(SIZE, dtype=torch.float64))
    y[1, 0] *= share * 1e-6
    assert torch.equal(balancing_whole(x, y, 1e-4)[1], torch.eye(SIZE, dtype=torch.float64))
