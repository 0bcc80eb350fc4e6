"""The loss of an average, predicted from pairwise midpoints, against direct evaluation of quadratic losses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import evals
from merge.errors import UsageError


def quadratic(generator: np.random.Generator, size: int) -> Any:
    """Return a random quadratic function; its Hessian need not be positive."""
    hessian, slope, level = generator.normal(size=(size, size)), generator.normal(size=size), generator.normal()
    return lambda x: float(x @ (hessian + hessian.T) @ x + slope @ x + level)


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_quadratic_loss_is_predicted_exactly(count: int, equal: bool) -> None:
    """40 random ones in 6 dimensions, to 1e-10; the mean of the models' losses is another number (the control)."""
    generator = np.random.default_rng(count)
    for _ in range(40):
        loss, models = quadratic(generator, 6), generator.normal(size=(count, 6))
        weights = np.ones(count) if equal else generator.exponential(size=count)
        single = [loss(model) for model in models]
        midpoints = [[loss((a + b) / 2) for b in models] for a in models]
        direct = loss(weights @ models / weights.sum())
        predicted = evals.average_loss(single, midpoints, None if equal else weights.tolist())
        assert abs(predicted - direct) < 1e-10 * max(1, abs(direct))
        assert count == 1 or abs(direct - weights @ single / weights.sum()) > 1e-6


def test_equal_weights_follow_the_formula_of_a_subset() -> None:
    """mean L - (1 / (2 n^2)) sum h: with losses 1, 1, 1 and midpoints 0, h is 8 and the average is 1 - 3 x 8 / 18."""
    assert evals.average_loss([1, 1, 1], np.zeros((3, 3))) == pytest.approx(1 - 24 / 18, abs=1e-12)


def test_a_weight_of_0_leaves_a_model_out_and_the_diagonal_is_not_read() -> None:
    table = np.array([[math.nan, 0.3, 9.0], [0.3, math.nan, 7.0], [9.0, 7.0, math.nan]])
    without = evals.average_loss([0.4, 0.6], table[:2, :2])
    assert evals.average_loss([0.4, 0.6, 5.0], table, [1, 1, 0]) == pytest.approx(without, abs=1e-12)
    assert evals.average_loss([0.4, 0.6, 5.0], table) != pytest.approx(without)


def test_a_loss_that_is_no_parabola_is_predicted_as_one() -> None:
    """Two thirds of the way over a narrow hill the loss is low; the parabola through the midpoint is high there."""
    predicted = evals.average_loss([0.0, 0.0], [[0, 1.0], [1.0, 0]], [1, 2])
    assert predicted == pytest.approx(4 * 1.0 * (1 / 3) * (2 / 3), abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1, 0.2], [[0.0]]), r"found losses \(2,\), midpoints \(1, 1\)"),
        (([], np.zeros((0, 0))), "expected losses and weights of one length"),
        (([0.1, 0.2], np.zeros((2, 2)), [1]), r"weights \(1,\)"),
        (([0.1, math.nan], np.zeros((2, 2))), "not finite"),
        (([0.1, 0.2], [[0, math.inf], [math.inf, 0]]), "not finite"),
        (([0.1, 0.2], [[0, 0.1], [0.3, 0]]), "not symmetric"),
        (([0.1, 0.2], np.zeros((2, 2)), [2, -1]), "must not be negative"),
        (([0.1, 0.2], np.zeros((2, 2)), [0, 0]), "one must be positive"),
        ((["x", 0.2], np.zeros((2, 2))), "losses: expected a list of numbers, found "),
        (([0.1, 0.2], [[0], [1, 2]]), "midpoints are not numbers"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        evals.average_loss(*arguments)
    assert "\n" not in str(caught.value)
