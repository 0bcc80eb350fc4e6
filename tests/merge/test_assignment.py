"""The exact assignment, against brute force over all permutations."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from merge.alignment.assignment import match_axis, match_heads
from merge.errors import AlignmentError


def total(gain: torch.Tensor, order: tuple[int, ...]) -> float:
    return sum(float(gain[i, j]) for i, j in enumerate(order))


@pytest.mark.parametrize("seed", range(20))
def test_the_matching_has_the_largest_total_gain_of_all(seed: int) -> None:
    """720 permutations are all of them."""
    gain = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    best = max(permutations(range(6)), key=lambda order: total(gain, order))
    assert tuple(match_axis(gain).tolist()) == best


def test_the_argmax_shortcut_is_taken_only_when_it_is_exact() -> None:
    """Two rows that want the same column: the row-wise argmax is no matching, and the best one is worth 5 + 3."""
    gain = torch.tensor([[5.0, 3.0], [4.0, 0.0]], dtype=torch.float64)
    assert match_axis(gain).tolist() == [1, 0]
    assert total(gain, (1, 0)) > total(gain, (0, 1))


def test_units_that_never_vary_stay_where_they_are() -> None:
    """Equal gains say nothing, and shuffling dead units would only make noise."""
    assert match_axis(torch.zeros(7, 7, dtype=torch.float64)).tolist() == list(range(7))
    gain = torch.zeros(7, 7, dtype=torch.float64)
    for place, unit in ((4, 0), (0, 5), (5, 4)):
        gain[place, unit] = 1
    assert match_axis(gain).tolist() == [5, 1, 2, 3, 0, 4, 6]


def test_nan_and_infinity_are_errors() -> None:
    for bad in (torch.nan, torch.inf):
        gain = torch.eye(3, dtype=torch.float64)
        gain[1, 2] = bad
        with pytest.raises(AlignmentError, match="NaN or infinity"):
            match_axis(gain)


def test_two_level_matching_is_best_over_heads_and_what_is_inside_them() -> None:
    """Brute force: 3! orders of heads, and for each head 3! orders of the first inner axis and 2! of the second."""
    generator = torch.Generator().manual_seed(4)
    first = torch.randn(3, 3, 3, 3, generator=generator, dtype=torch.float64)
    second = torch.randn(3, 2, 3, 2, generator=generator, dtype=torch.float64)

    def worth(heads: tuple[int, ...]) -> float:
        value = 0.0
        for g, h in enumerate(heads):
            for gain in (first, second):
                block = gain[g, :, h, :]
                value += max(total(block, order) for order in permutations(range(len(block))))
        return value

    best = max(permutations(range(3)), key=worth)
    heads, (inner_first, inner_second) = match_heads([first, second])
    assert tuple(heads.tolist()) == best
    found = sum(
        total(gain[g, :, int(heads[g]), :], tuple(inner[g].tolist()))
        for gain, inner in ((first, inner_first), (second, inner_second))
        for g in range(3)
    )
    assert found == pytest.approx(worth(best), abs=1e-12)
    assert worth(best) > worth(tuple(reversed(best)))
