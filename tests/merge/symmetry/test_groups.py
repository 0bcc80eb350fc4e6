"""The groups: each holds what it draws, and what its defining equation says; none holds its neighbour's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_transforms import DRAWS, random_map

from merge.symmetry.groups import GROUPS, complex_map, rotary_pairs

SHAPES = ((6,), (3, 6))
DRAWING = [name for name in GROUPS if name not in ("permutation", "none")]


def draw(name: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return random_map(name, shape, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DRAWING)
def test_a_group_holds_what_it_draws(name: str, shape: tuple[int, ...]) -> None:
    for seed in range(5):
        drawn = draw(name, shape, seed)
        assert drawn.dtype == torch.float64
        assert GROUPS[name].contains(drawn, shape)
        assert not torch.equal(drawn, torch.ones(shape, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DRAWING)
def test_a_group_is_closed(name: str, shape: tuple[int, ...]) -> None:
    """Products and inverses of elements are elements: by numpy, on matrices."""
    left, right = (draw(name, shape, seed).numpy() for seed in (1, 2))
    if left.ndim == len(shape):
        assert GROUPS[name].contains(torch.from_numpy(left * right), shape)
        assert GROUPS[name].contains(torch.from_numpy(1 / left), shape)
    else:
        assert GROUPS[name].contains(torch.from_numpy(left @ right), shape)
        assert GROUPS[name].contains(torch.from_numpy(np.linalg.inv(left)), shape)


@pytest.mark.parametrize("name", GROUPS)
def test_every_group_holds_the_identity_and_nothing_that_is_not_a_number(name: str) -> None:
    ones = torch.ones(6, dtype=torch.float64)
    assert GROUPS[name].contains(ones, (6,))
    assert not GROUPS[name].contains(ones.float(), (6,))
    assert not GROUPS[name].contains(torch.ones(5, dtype=torch.float64), (6,))
    assert not GROUPS[name].contains(torch.full((6,), torch.nan, dtype=torch.float64), (6,))
    assert not GROUPS[name].contains(torch.zeros(6, dtype=torch.float64), (6,))
    assert not GROUPS[name].contains(torch.zeros(6, 6, dtype=torch.float64), (6,))


def test_two_groups_draw_nothing() -> None:
    """Their elements move units, or do nothing at all; every other group has a draw of its own."""
    assert [name for name in GROUPS if name not in DRAWS] == ["permutation", "none"]


# Group -> the groups whose random element it does not hold.
OUTSIDE = {
    "permutation": DRAWING,
    "none": DRAWING,
    "signed": ["positive", "real", "orthogonal", "orthogonal_one", "linear", "rotary"],
    "sign": ["signed", "positive", "real", "rotary_sign", "orthogonal"],
    "positive": ["signed", "sign", "real", "orthogonal", "linear"],
    "real": ["orthogonal", "linear", "rotary"],
    "linear": [],
    "orthogonal": ["positive", "real", "linear", "rotary", "rotary_adjacent"],
    "orthogonal_one": ["orthogonal", "sign", "signed", "positive", "linear"],
    "rotary": ["orthogonal", "linear", "rotary_adjacent", "signed", "positive"],
    "rotary_adjacent": ["orthogonal", "linear", "rotary", "signed", "rotary_sign"],
    "rotary_sign": ["signed", "positive", "rotary", "orthogonal"],
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_does_not_hold_another_group_s_element(name: str) -> None:
    """Of six draws: signs may happen to agree in one."""
    for other in OUTSIDE[name]:
        assert not all(GROUPS[name].contains(draw(other, (6,), seed), (6,)) for seed in range(6)), other
    assert name in OUTSIDE


@pytest.mark.parametrize("name", DRAWING)
def test_what_is_drawn_is_well_conditioned(name: str) -> None:
    """Scales lie between 1/2 and 2, so no more than a factor of four is lost to rounding."""
    for seed in range(5):
        drawn = draw(name, (8,), seed).numpy()
        values = np.abs(drawn) if drawn.ndim == 1 else np.linalg.svd(drawn, compute_uv=False)
        assert 0.5 - 1e-12 <= values.min() <= values.max() <= 2 + 1e-12


def test_rotations_keep_lengths_and_the_folded_ones_the_mean() -> None:
    """By their definitions, in numpy: |O x| = |x|, and mean(O x) = mean(x)."""
    x = np.random.default_rng(0).standard_normal(7)
    for name in ("orthogonal", "orthogonal_one"):
        turned = draw(name, (7,)).numpy() @ x
        assert abs(np.linalg.norm(turned) - np.linalg.norm(x)) < 1e-12
        assert not np.allclose(turned, x)
        assert (abs(turned.mean() - x.mean()) < 1e-12) == (name == "orthogonal_one")


@pytest.mark.parametrize("n", [1, 2])
def test_small_axes_can_be_drawn(n: int) -> None:
    """One unit, or two: rotations that fix the ones vector are then the identity, or a swap."""
    drawn = draw("orthogonal_one", (n,))
    assert GROUPS["orthogonal_one"].contains(drawn, (n,))
    assert np.allclose(np.abs(drawn.numpy() @ np.ones(n)), 1)


@pytest.mark.parametrize(("name", "adjacent"), [("rotary", False), ("rotary_adjacent", True)])
def test_rotary_elements_commute_with_rotary_positions(name: str, adjacent: bool) -> None:
    """At any position, by the rotation written out in numpy; they do not in the other layout."""
    first, second = (places.numpy() for places in rotary_pairs(6, adjacent))
    angles = np.array([0.3, 1.1, 2.5])
    position = np.zeros((6, 6))
    position[first, first] = position[second, second] = np.cos(angles)
    position[first, second], position[second, first] = -np.sin(angles), np.sin(angles)
    drawn, other = (draw(n, (6,)).numpy() for n in ("rotary", "rotary_adjacent"))
    mine, wrong = (other, drawn) if adjacent else (drawn, other)
    assert np.allclose(mine @ position, position @ mine)
    assert not np.allclose(wrong @ position, position @ wrong)


def test_a_complex_map_multiplies_pairs_by_complex_numbers() -> None:
    """numpy's own complex numbers say what a pair becomes."""
    rng = np.random.default_rng(1)
    z, x = rng.standard_normal(3) + 1j * rng.standard_normal(3), rng.standard_normal(6)
    for adjacent, number in ((False, x[:3] + 1j * x[3:]), (True, x[0::2] + 1j * x[1::2])):
        mapped = complex_map(torch.from_numpy(z.real.copy()), torch.from_numpy(z.imag.copy()), adjacent).numpy() @ x
        first, second = (places.numpy() for places in rotary_pairs(6, adjacent))
        assert np.allclose(mapped[first] + 1j * mapped[second], z * number)


def test_an_odd_number_of_places_has_no_pairs() -> None:
    assert not GROUPS["rotary"].contains(torch.ones(5, dtype=torch.float64), (5,))
    assert GROUPS["real"].contains(torch.ones(5, dtype=torch.float64), (5,))


def test_every_group_is_described_in_one_line_with_its_reason() -> None:
    assert all(
        group.description and "\n" not in group.description and ":" in group.description for group in GROUPS.values()
    )
    assert len(GROUPS) == 12
