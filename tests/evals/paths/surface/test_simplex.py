"""Simplexes: volumes of known ones, points drawn evenly, and calibration of known probabilities."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from evals.paths.surface.ensemble import calibration
from evals.paths.surface.simplex import (
    VolumePenalty,
    drawn_weights,
    log_volume,
    low_loss_dimension,
    regular_share,
    squared_distances_to,
    volume,
)


def squares(points: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(((points[:, None] - points) ** 2).sum(2))


def test_the_volume_of_a_unit_right_triangle_is_a_half() -> None:
    triangle = squares(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert volume(triangle) == pytest.approx(0.5, rel=1e-12)
    assert volume(4 * triangle) == pytest.approx(2.0, rel=1e-12)
    assert volume(squares(np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]))) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 8])
def test_the_volume_of_the_unit_simplex_is_one_over_n_factorial(n: int) -> None:
    """Corners 0 and the n unit vectors; and, of random corners, |det| / n! of their edges."""
    assert volume(squares(np.vstack([np.zeros(n), np.eye(n)]).reshape(n + 1, n))) == pytest.approx(
        1 / math.factorial(n)
    )
    points = np.random.default_rng(n).normal(size=(n + 1, n))
    expected = abs(np.linalg.det(points[1:] - points[0])) / math.factorial(n) if n else 1.0
    assert volume(squares(points)) == pytest.approx(expected, rel=1e-8)


def test_the_share_of_the_regular_simplex_is_one_for_it() -> None:
    for n in (1, 2, 4):
        regular = squares(np.eye(n + 1))  # all sides sqrt 2
        assert regular_share(regular) == pytest.approx(1, rel=1e-9)
    assert regular_share(squares(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))) == pytest.approx(
        0.5 / (math.sqrt(3) / 4 * 4 / 3), rel=1e-9
    )


def test_points_are_drawn_evenly() -> None:
    """Each weight of an even draw from a triangle has mean 1/3 and variance 1/18 (Dirichlet with parameters 1)."""
    numbers = random.Random(0)
    drawn = np.array([drawn_weights(3, numbers) for _ in range(20000)])
    assert drawn.sum(1) == pytest.approx(np.ones(20000))
    assert drawn.mean(0) == pytest.approx(np.full(3, 1 / 3), abs=0.01)
    assert drawn.var(0) == pytest.approx(np.full(3, 1 / 18), abs=0.002)


def test_the_penalty_pushes_a_new_vertex_off_the_others() -> None:
    """Its gradient, by finite differences of the volume computed from coordinates, points away from their line."""
    others = [{"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([2.0, 0.0])}]
    known = squares(np.array([[0.0, 0.0], [2.0, 0.0]]))
    penalty = VolumePenalty((tuple(others),), (known,), 0.1)
    place = torch.tensor([1.0, 0.5], requires_grad=True)
    penalty([{"w": place}]).backward()
    assert place.grad is not None
    assert place.grad[1] < 0  # less penalty farther from the line
    assert place.grad[0] == pytest.approx(0, abs=1e-6)
    assert squared_distances_to({"w": place}, others).tolist() == pytest.approx([1.25, 1.25])
    start = torch.tensor([1.0, 0.0], requires_grad=True)  # of no volume: finite
    value = penalty([{"w": start}])
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert start.grad is not None
    assert bool(torch.isfinite(start.grad).all())


def test_twice_the_height_is_twice_the_volume_to_the_penalty() -> None:
    """Of a regular triangle of side 1 the logarithm is 0 but for what keeps a flat one finite; log 2 at twice the height."""
    regular, high = (
        float(log_volume(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.full((2,), 0.25 + height**2)))
        for height in (3**0.5 / 2, 3**0.5)
    )
    assert regular == pytest.approx(0, abs=1e-4)
    assert high == pytest.approx(math.log(2), abs=1e-4)


def test_the_dimension_is_the_last_before_the_loss_is_over_the_bound() -> None:
    assert low_loss_dimension([0.1, 0.12, 0.14, 0.3, 0.1], 0.15) == 2
    assert low_loss_dimension([0.1, 0.2], 0.15) == 0
    assert low_loss_dimension([0.1, float("nan"), 0.1], 0.15) == 0


def test_calibration_of_known_probabilities() -> None:
    """Two bins: confidence .9 with 3 of 4 right, and .6 with 1 of 2 right."""
    probabilities = torch.tensor([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2)
    gold = torch.tensor([0, 0, 0, 1, 1, 0])
    made = calibration(probabilities, gold)
    assert made.accuracy == pytest.approx(4 / 6)
    assert made.ece == pytest.approx((4 * 0.15 + 2 * 0.1) / 6, abs=1e-6)
    assert made.nll == pytest.approx(-(3 * math.log(0.9) + math.log(0.1) + math.log(0.6) + math.log(0.4)) / 6, abs=1e-6)
    sure = calibration(torch.eye(2).double(), torch.tensor([0, 1]))
    assert (sure.accuracy, sure.nll, sure.ece) == (1.0, 0.0, 0.0)


def test_squared_distances_do_not_overflow() -> None:
    """Of weights whose squares, and whose difference, float32 cannot hold; the gradient is twice the difference."""
    place = torch.tensor([3e38, 1.0], requires_grad=True)
    found = squared_distances_to({"w": place}, [{"w": torch.tensor([-3e38, 1.0])}, {"w": torch.tensor([3e38, 3.0])}])
    assert found.tolist() == pytest.approx([36e76, 4.0])
    found[1].backward()
    assert place.grad is not None
    assert place.grad.tolist() == [0.0, -4.0]
