"""What maps do: every case written out with numpy's own products and slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merge.errors import SpecError
from merge.symmetry.maps import apply_map, conjugated, inverted, product
from merge.symmetry.notation import View, parse
from merge.symmetry.permutation import Permutation

RNG = np.random.default_rng(0)
P = Permutation(
    {
        "a": torch.tensor([2, 0, 1, 3]),
        "h": torch.tensor([1, 0]),
        "v": torch.tensor([[2, 0, 1], [0, 2, 1]]),
    },
    {"v": "h", "turn": "h"},
)


def array(*shape: int) -> torch.Tensor:
    return torch.from_numpy(RNG.standard_normal(shape))


def view_of(line: str, size: int, **counts: int) -> tuple[View, ...]:
    (axis,) = parse(line)
    return axis.views((size,), counts)


def matrix(index: torch.Tensor) -> np.ndarray:
    """Return the permutation as a matrix: row i has its one at p[i]."""
    return np.eye(len(index))[index.numpy()]


def test_a_map_is_carried_through_a_permutation_as_a_conjugate() -> None:
    """P M P^-1, on a plain axis, by matrix products; on a diagonal the same of its matrix."""
    m, d, p = array(4, 4), array(4), matrix(P.indices["a"])
    assert np.allclose(conjugated("a", m, P), p @ m.numpy() @ p.T)
    assert np.allclose(np.diag(conjugated("a", d, P)), p @ np.diag(d) @ p.T)
    assert not np.allclose(conjugated("a", m, P), p.T @ m.numpy() @ p)


def test_inside_blocks_the_blocks_move_and_then_what_is_inside() -> None:
    """New block 0 has the map of old block 1, in its own new order; a fixed order moves with its blocks alone."""
    m, d = array(2, 3, 3), array(2, 3)
    for new, old in enumerate((1, 0)):
        p = matrix(P.indices["v"][new])
        assert np.allclose(conjugated("v", m, P)[new], p @ m[old].numpy() @ p.T)
        assert np.allclose(np.diag(conjugated("v", d, P)[new]), p @ np.diag(d[old]) @ p.T)
        assert torch.equal(conjugated("turn", m, P)[new], m[old])
    assert not torch.equal(conjugated("turn", m, P)[0], m[0])


def test_products_and_inverses_of_diagonals_and_matrices() -> None:
    """Four kinds of pairs, each as a product of matrices."""
    dense = {1: (lambda x: np.diag(x)), 2: (lambda x: np.asarray(x))}
    for left in (array(4), array(4, 4)):
        for right in (array(4), array(4, 4)):
            found = product("a", left, right, P)
            wanted = dense[left.ndim](left) @ dense[right.ndim](right)
            assert np.allclose(dense[found.ndim](found), wanted)
            assert found.ndim == max(left.ndim, right.ndim)
        undone = dense[left.ndim](inverted("a", left, P))
        assert np.allclose(undone @ dense[left.ndim](left), np.eye(4))


def test_a_block_s_diagonals_are_not_taken_for_a_matrix() -> None:
    """(2, 2) is two diagonals inside two blocks, and one matrix on a plain axis."""
    inside = Permutation({"h": torch.arange(2), "v": torch.arange(2).expand(2, 2)}, {"v": "h"})
    plain = Permutation({"v": torch.arange(2)}, {})
    m = array(2, 2)
    assert np.allclose(inverted("v", m, inside), 1 / m.numpy())
    assert np.allclose(inverted("v", m, plain), np.linalg.inv(m.numpy()))


@pytest.mark.parametrize("role", ["", "'", "="])
def test_roles_on_a_plain_axis(role: str) -> None:
    """out: G x; in: G^-T x; =: x."""
    (view,) = view_of(f"a{role}", 4)
    g, d, x = array(4, 4), array(4), array(3, 4, 2)
    for mapped, dense in ((g, g.numpy()), (d, np.diag(d.numpy()))):
        wanted = {"": dense, "'": np.linalg.inv(dense).T, "=": np.eye(4)}[role]
        if role == "=":
            units = torch.ones(3, 4, 2, dtype=torch.float64) if mapped is g else x
            assert apply_map(mapped, view, units, 1, 1) is units
            continue
        assert np.allclose(apply_map(mapped, view, x, 1, 1), np.einsum("ij,ajb->aib", wanted, x))


def test_blocks_take_maps_of_their_own_and_grouped_queries_that_of_their_group() -> None:
    """Of 2 blocks of 5 query heads of 3 units: numpy's slices say who takes which map."""
    g, x = array(2, 3, 3), array(30, 4)
    (view,) = view_of("(h q v)", 30, h=2, q=5)
    new = apply_map(g, view, x, 0, 1).numpy()
    for block in range(2):
        for query in range(5):
            rows = slice(15 * block + 3 * query, 15 * block + 3 * query + 3)
            assert np.allclose(new[rows], g[block].numpy() @ x[rows].numpy())
    (view,) = view_of("(h v)", 6, h=2)
    d = array(2, 3)
    assert np.allclose(apply_map(d, view, x[:6], 0, 1), d.reshape(6, 1).numpy() * x[:6].numpy())


def test_parts_take_maps_in_their_own_roles() -> None:
    """Fused queries, keys and values: the first takes G, the second G^-T, the third nothing."""
    g, x = array(2, 3, 3), array(18)
    new = x
    for view in view_of("[(h v) | (h v') | (h -)]", 18, h=2):
        if view.map_axis:
            new = apply_map(g, view, new, 0, 1)
    halves = x.reshape(3, 2, 3).numpy()
    taken = (g.numpy(), np.linalg.inv(g.numpy()).swapaxes(1, 2))
    wanted = [np.einsum("bij,bj->bi", m, half) for m, half in zip(taken, halves[:2], strict=True)]
    assert np.allclose(new.reshape(3, 2, 3), [*wanted, halves[2]])
    assert torch.equal(new[12:], x[12:])


def test_two_axes_of_a_tensor_stand_for_one_split_axis() -> None:
    """XLNet's weights have an axis for heads and one for what is inside."""
    (axis,) = parse("{h v}'")
    (view,) = axis.views((2, 3), {})
    g, x = array(2, 3, 3), array(5, 2, 3)
    wanted = np.einsum("bji,abj->abi", np.linalg.inv(g), x)
    assert np.allclose(apply_map(g, view, x, 1, 2), wanted)


def test_a_named_fixed_order_takes_maps() -> None:
    (view,) = view_of("(h -turn')", 6, h=2)
    assert view.map_axis == "turn"
    g, x = array(2, 3, 3), array(6)
    wanted = np.einsum("bji,bj->bi", np.linalg.inv(g), x.reshape(2, 3))
    assert np.allclose(apply_map(g, view, x, 0, 1).reshape(2, 3), wanted)


def test_the_tensor_is_not_written_to() -> None:
    (view,) = view_of("a", 4)
    x = array(4)
    before = x.clone()
    assert apply_map(array(4), view, x, 0, 1) is not x
    assert torch.equal(x, before)


def test_what_does_not_fit_is_said() -> None:
    (view,) = view_of("a", 4)
    with pytest.raises(SpecError, match=r"map of axis 'a' has shape \(5,\), but the axis has \(4,\) units"):
        apply_map(array(5), view, array(4), 0, 1)
    with pytest.raises(SpecError, match=r"axis 'a' has a map, but the tensor holds torch.int64"):
        apply_map(array(4), view, torch.arange(4), 0, 1)
    (gain,) = view_of("a=", 4)
    with pytest.raises(SpecError, match="multiplies the units of axis 'a' one by one, by factors that differ"):
        apply_map(array(4, 4), gain, array(4), 0, 1)
    ones = torch.ones(4)
    assert apply_map(array(4, 4), gain, ones, 0, 1) is ones
