"""Maps in closed form: planted ones are found, they are best, and what a head shows stays what it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.alignment.solvers.procrustes import (
    balanced,
    balancing,
    head_maps,
    orthogonal,
    rotary_maps,
    rotary_matrices,
    rotation_fixing_ones,
)
from merge.errors import AlignmentError

HEADS, SIZE, WIDTH = 3, 6, 20


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotations(*shape: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(drawn(*shape, shape[-1], seed=seed)).Q


def test_a_planted_basis_of_every_head_is_found() -> None:
    """b is a in another orthogonal basis, queries and keys in the same; a shared basis moves the keys by G^-T = G."""
    q, k, planted = drawn(HEADS, SIZE, WIDTH), drawn(HEADS, SIZE, WIDTH, seed=1), rotations(HEADS, SIZE, seed=2)
    found = head_maps((q, k), (planted.mT @ q, planted.mT @ k))
    assert torch.allclose(found, planted, atol=1e-10)
    assert not torch.allclose(head_maps((q, k), (planted.mT @ q, drawn(HEADS, SIZE, WIDTH, seed=3))), planted, atol=0.1)


def test_grouped_queries_share_one_basis() -> None:
    """Two query heads read one value head: their columns of the output projection count together."""
    v, o, planted = drawn(HEADS, SIZE, WIDTH), drawn(HEADS, 2, SIZE, WIDTH, seed=1), rotations(HEADS, SIZE, seed=2)
    noise = 0.3 * drawn(HEADS, 2, SIZE, WIDTH, seed=3)
    found = head_maps((v, o), (planted.mT @ v, planted[:, None].mT @ (o + noise)))
    by_hand = [
        v[h] @ (planted[h].mT @ v[h]).T + sum(o[h, q] @ (planted[h].mT @ (o + noise)[h, q]).T for q in range(2))
        for h in range(HEADS)
    ]
    expected = np.stack([np.matmul(*(np.linalg.svd(x.numpy())[part] for part in (0, 2))) for x in by_hand])
    assert np.abs(found.numpy() - expected).max() < 1e-10
    assert torch.linalg.matrix_norm(found - planted).max() < 1
    assert torch.linalg.matrix_norm(found - torch.eye(SIZE)).min() > 1


def test_heads_of_different_shapes_are_an_error() -> None:
    with pytest.raises(AlignmentError, match=r"\(3, 6, 20\), those of b \(3, 6, 19\)"):
        head_maps([drawn(HEADS, SIZE, 20)], [drawn(HEADS, SIZE, 19)])


def test_no_orthogonal_map_gains_more() -> None:
    """The maximum is the sum of the singular values; random orthogonal matrices stay below it."""
    gain = drawn(SIZE, SIZE)
    best = float((gain * orthogonal(gain)).sum())
    assert best == pytest.approx(float(np.linalg.svd(gain.numpy(), compute_uv=False).sum()), abs=1e-10)
    assert all(float((gain * rotations(SIZE, seed=seed)).sum()) < best - 1e-3 for seed in range(50))


def test_balanced_heads_show_the_same_and_weigh_alike() -> None:
    """x^T y is unchanged, both factors have equal Gram matrices, and these are the singular values of x^T y."""
    x, y = 5 * drawn(HEADS, SIZE, WIDTH), drawn(HEADS, SIZE, WIDTH + 3, seed=1)
    new_x, new_y = balanced(x, y)
    values = np.linalg.svd((x.mT @ y).numpy(), compute_uv=False)[:, :SIZE]
    assert torch.allclose(new_x.mT @ new_y, x.mT @ y, atol=1e-10)
    for new in (new_x, new_y):
        assert np.abs((new @ new.mT).numpy() - np.stack([np.diag(v) for v in values])).max() < 1e-10
    assert float((x @ x.mT - y @ y.mT).abs().min(0).values.max()) > 1


def test_balancing_makes_one_of_all_bases() -> None:
    """A random invertible map inside a head is undone but for signs; without balancing the factors differ."""
    x, y, planted = drawn(HEADS, SIZE, WIDTH), drawn(HEADS, SIZE, WIDTH, seed=1), drawn(HEADS, SIZE, SIZE, seed=2)
    other_x, other_y = planted @ x, torch.linalg.inv(planted).mT @ y
    here, there = balanced(x, y)[0], balanced(other_x, other_y)[0]
    assert torch.allclose(here.abs(), there.abs(), atol=1e-8)
    assert not torch.allclose(x.abs(), other_x.abs(), atol=0.1)


def test_the_balancing_map_does_what_balanced_gives() -> None:
    """G x and G^-T y, up to the sign of each row; a head that does not use a direction is an error."""
    x, y = drawn(HEADS, SIZE, WIDTH), drawn(HEADS, SIZE, WIDTH, seed=1)
    g = balancing(x, y)
    expected = balanced(x, y)
    assert torch.allclose(g @ x, expected[0], atol=1e-9)
    assert torch.allclose(torch.linalg.inv(g).mT @ y, expected[1], atol=1e-9)
    x[1, 2] = x[1, 3]
    with pytest.raises(AlignmentError, match="head 1 does not use all of its 6 directions"):
        balancing(x, y)


def rotary_scores(q: Tensor, k: Tensor, layout: str) -> Tensor:
    """Return the scores of queries at place 3 with keys at place 0: each pair turned by its own speed, times x's."""
    pairs = SIZE // 2
    turned = rotary_matrices(
        torch.polar(torch.ones(HEADS, pairs).double(), 3 * drawn(pairs).abs().expand(HEADS, -1)), layout
    )
    return (turned @ q).mT @ k


@pytest.mark.parametrize("layout", ["halves", "interleaved"])
def test_planted_rotary_scalars_are_found(layout: str) -> None:
    """b's pairs carry a scale and an angle each; the scores of turned queries do not show them, and they are undone."""
    q, k = drawn(HEADS, SIZE, WIDTH), drawn(HEADS, SIZE, WIDTH, seed=1)
    planted = torch.polar(drawn(HEADS, SIZE // 2, seed=2).exp(), 3 * drawn(HEADS, SIZE // 2, seed=3))
    moved = rotary_matrices(1 / planted, layout)
    b = moved @ q, torch.linalg.inv(moved).mT @ k
    assert torch.allclose(rotary_scores(*b, layout), rotary_scores(q, k, layout), atol=1e-9)
    assert torch.allclose(rotary_maps((q, k), b, layout), planted, atol=1e-9)
    wrong = "interleaved" if layout == "halves" else "halves"
    assert not torch.allclose(rotary_scores(*b, wrong), rotary_scores(q, k, wrong), atol=0.1)
    assert not torch.allclose(rotary_maps((q, k), b, wrong), planted, atol=0.1)


def test_rotary_scalars_are_shared_by_the_queries_of_a_group() -> None:
    q, k = drawn(HEADS, 2, SIZE, WIDTH), drawn(HEADS, SIZE, WIDTH, seed=1)
    planted = torch.polar(drawn(HEADS, SIZE // 2, seed=2).exp(), 3 * drawn(HEADS, SIZE // 2, seed=3))
    moved = rotary_matrices(1 / planted)
    b = moved[:, None] @ q, torch.linalg.inv(moved).mT @ k
    assert torch.allclose(rotary_maps((q, k), b), planted, atol=1e-9)
    assert not torch.allclose(rotary_maps((q, k), (b[0], k)), planted, atol=0.1)


def test_an_unknown_layout_is_an_error() -> None:
    q = drawn(HEADS, SIZE, WIDTH)
    with pytest.raises(AlignmentError, match="no rotary layout 'half'. Known: halves, interleaved"):
        rotary_maps((q, q), (q, q), "half")


def test_a_pair_that_is_zero_keeps_its_scale() -> None:
    q, k = drawn(HEADS, SIZE, WIDTH), drawn(HEADS, SIZE, WIDTH, seed=1)
    dead = q.clone()
    dead[0, [1, 4]] = 0
    found = rotary_maps((dead, k), (q, 2 * k))
    assert float(found[0, 1].abs()) == pytest.approx(1.0)
    assert float(found[0, 0].abs()) == pytest.approx(2**0.5)


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
