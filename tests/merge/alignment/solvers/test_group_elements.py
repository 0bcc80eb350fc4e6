"""The best element of every group: planted ones are found, and none of the group's own draws is worth more."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from random_transforms import random_map
from torch import Tensor

from merge.alignment.solvers.group_elements import BEST, best_element, score_bound
from merge.symmetry.groups import GROUPS

SIZE = 6


def drawn(seed: int, n: int = SIZE) -> Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(index: Tensor, mapped: Tensor | None) -> np.ndarray:
    """Return an element as a matrix: row i takes unit index[i], then the map acts."""
    order = np.eye(len(index))[index.numpy()]
    if mapped is None:
        return order
    return (mapped.diag() if mapped.ndim == 1 else mapped).numpy() @ order


def test_every_group_has_its_best_element() -> None:
    assert BEST.keys() == GROUPS.keys()


@pytest.mark.parametrize("group", BEST)
def test_the_element_is_in_the_group_and_worth_what_it_says(group: str) -> None:
    """<gain, E> by a product of matrices; and no more than the bound."""
    gain = drawn(1)
    found = best_element(group, gain)
    by_hand = float((gain.numpy() * matrix(found.index, found.map)).sum())
    assert found.score(gain) == pytest.approx(by_hand, abs=1e-10)
    assert by_hand <= float(score_bound(group, gain)) + 1e-10
    mapped = torch.ones(SIZE, dtype=torch.float64) if found.map is None else found.map
    assert GROUPS[group].contains(mapped, (SIZE,))


@pytest.mark.parametrize("group", ["signed", "sign", "permutation"])
def test_no_other_order_and_no_other_signs_are_worth_more(group: str) -> None:
    """All of them, of five units."""
    gain = drawn(2, 5)
    choices = {"signed": list(itertools.product((1, -1), repeat=5)), "sign": [(1,) * 5, (-1,) * 5]}
    signs = np.array(choices.get(group, [(1,) * 5]))
    orders = itertools.permutations(range(5))
    best = max(float((signs * gain.numpy()[range(5), order]).sum(1).max()) for order in orders)
    found = best_element(group, gain)
    assert found.score(gain) == pytest.approx(best, abs=1e-10)
    assert best > found.score(gain.roll(1, 0)) + 0.1


@pytest.mark.parametrize(
    "group", ["linear", "orthogonal", "orthogonal_one", "rotary", "rotary_adjacent", "rotary_sign"]
)
def test_a_planted_turn_is_found(group: str) -> None:
    """The gain of a and of a turned back is the turn times something positive: it is the best, and the only one."""
    rows = drawn(3, 40)[:SIZE]
    turn = random_map("orthogonal" if group == "linear" else group, (SIZE,), torch.Generator().manual_seed(4))
    assert turn is not None
    turn = turn if turn.ndim == 2 else turn.diag()
    turn = turn / turn.square().sum(0).sqrt()  # the phase of a rotary number, without its size
    found = best_element(group, rows @ (turn.mT @ rows).mT)
    assert np.abs(matrix(found.index, found.map) - turn.numpy()).max() < 1e-9
    assert np.abs(turn.numpy() - np.eye(SIZE)).max() > 0.1


def test_a_gain_of_what_takes_no_sign_is_weighed_against_the_signs() -> None:
    """One unit fits its own place with a minus; what is moved along without a sign says otherwise, and decides if it is more."""
    gain, held = -torch.eye(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    found = best_element("sign", gain, held)
    assert found.map is not None
    assert found.map.tolist() == [-1, -1, -1]
    held = 3 * torch.eye(3, dtype=torch.float64).roll(1, 0)
    assert best_element("sign", gain, held).index.tolist() == [2, 0, 1]


def test_where_nothing_is_said_nothing_moves() -> None:
    for group in BEST:
        found = best_element(group, torch.zeros(SIZE, SIZE, dtype=torch.float64))
        assert found.index.tolist() == list(range(SIZE))
        assert found.map is None
