"""Monotonic interpolation: rises and bumps of curves whose answers are known, and the turning of known paths."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from evals.paths.surface.arc import gauss_length
from evals.paths.surface.monotonic import bumps, is_monotone, smallest_delta

GRID = [k / 40 for k in range(41)]


def test_a_quadratic_path_is_monotone() -> None:
    """(alpha - 1)^2, the loss of a quadratic on the way to its minimum; beyond the minimum it is not (negative control)."""
    falling = [(a - 1) ** 2 for a in GRID]
    assert is_monotone(falling)
    assert smallest_delta(falling) == (0.0, 0, 0)
    assert bumps(GRID, falling) == ()
    beyond = [(a - 0.75) ** 2 for a in GRID]
    assert not is_monotone(beyond)
    assert smallest_delta(beyond) == (pytest.approx(0.0625), 30, 40)
    (bump,) = bumps(GRID, beyond)
    assert (bump.start, bump.top, bump.end, bump.closed) == (0.75, 1.0, 1.0, False)


def test_the_smallest_delta_is_that_of_all_pairs() -> None:
    for seed in range(20):
        loss = np.random.default_rng(seed).normal(size=12)
        expected = max(0.0, *(b - a for a, b in itertools.combinations(loss, 2)))
        assert smallest_delta(loss.tolist())[0] == pytest.approx(expected)


def test_bumps_open_before_the_rise_and_close_below_it() -> None:
    alpha = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    loss = [5.0, 4.0, 4.5, 4.2, 3.9, 3.0, 3.2, 3.1, 3.4, 2.0]
    first, second = bumps(alpha, loss)
    assert (first.start, first.top, first.end, first.height) == (0.1, 0.2, 0.4, 0.5)
    assert (second.start, second.top, second.end, second.closed) == (0.5, 0.8, 0.9, True)
    assert second.height == pytest.approx(0.4)
    assert second.width == pytest.approx(0.4)
    (level,) = bumps([0.0, 0.2, 0.6, 1.0], [1.0, 2.0, 1.0, 0.5])  # as high as before the rise is not below it
    assert (level.end, level.closed) == (1.0, True)
    assert bumps(alpha, [value if value != 3.2 else 3.0 + 1e-7 for value in loss[:7]])[1:] == ()  # rounding is no bump


@pytest.mark.parametrize("angle", [lambda a: math.pi * a, lambda a: math.pi * (a + a**2) / 2])
def test_a_half_circle_has_the_gauss_length_pi(angle: object) -> None:
    """Whatever its speed and size; of a quarter circle it is half as much (negative control), and of a straight way 0."""

    def arc(scale: float) -> object:
        def path(a: torch.Tensor) -> torch.Tensor:
            turned = scale * angle(a)  # type: ignore[operator]
            return torch.stack([torch.stack([3 * torch.cos(turned), 3 * torch.sin(turned)]), torch.stack([a, 2 * a])])

        return path

    few = GRID[::4]  # the trapezoid rule is exact for a rate that is linear
    lengths = gauss_length(arc(1.0), few)  # type: ignore[arg-type]
    assert lengths.tolist() == pytest.approx([math.pi, 0.0], abs=1e-4)
    assert gauss_length(arc(0.5), few)[0] == pytest.approx(math.pi / 2, abs=1e-4)  # type: ignore[arg-type]
