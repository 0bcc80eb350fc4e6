"""The best temperature: planted ones are found again, and it is where the loss is least."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evals.paths.temperature import MAX_TEMPERATURE, MIN_TEMPERATURE, best_temperature


def loss_at(logits: np.ndarray, gold: np.ndarray, temperature: float) -> float:
    """Return the mean cross-entropy of the divided logits, written out."""
    scaled = logits / temperature
    return float(np.mean([math.log(np.exp(row - row[k]).sum()) for row, k in zip(scaled, gold, strict=True)]))


def planted(temperature: float, seed: int = 0, rows: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are `temperature` times those by which the classes were drawn."""
    generator = np.random.default_rng(seed)
    true = generator.normal(size=(rows, 3))
    gold = np.array([generator.choice(3, p=np.exp(row) / np.exp(row).sum()) for row in true])
    return temperature * true, gold


@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
def test_a_planted_temperature_is_found(temperature: float) -> None:
    """Classes drawn from softmax(z) and logits T z: the best temperature is T, but for the luck of 4,000 draws."""
    assert best_temperature(*planted(temperature)) == pytest.approx(temperature, rel=0.1)
    assert best_temperature(*planted(temperature)) != pytest.approx(2 * temperature, rel=0.1)


def test_scaling_the_logits_scales_the_temperature_exactly() -> None:
    """min over T of the loss of c z / T is reached at c T: an identity, whatever the rows."""
    logits, gold = planted(1.0)
    one = best_temperature(logits, gold)
    for factor in (0.01, 7.0, 90.0):
        assert best_temperature(factor * logits, gold) == pytest.approx(factor * one, rel=1e-9)


def test_it_is_where_the_loss_is_least() -> None:
    """Among 400 temperatures on either side none has a smaller loss, and some have a much larger one."""
    logits, gold = planted(4.0, seed=2, rows=200)
    best = best_temperature(logits, gold)
    least = loss_at(logits, gold, best)
    others = [loss_at(logits, gold, best * factor) for factor in np.geomspace(0.1, 10, 400)]
    assert min(others) >= least - 1e-12
    assert max(others) > least + 0.1


def test_a_level_shift_of_a_row_changes_nothing() -> None:
    """Softmax does not see it; a thousand is far from where exponentials overflow without care."""
    logits, gold = planted(2.0, rows=300)
    shifted = logits + 1000 * np.random.default_rng(3).normal(size=(300, 1))
    assert best_temperature(shifted, gold) == pytest.approx(best_temperature(logits, gold), rel=1e-6)


def test_a_model_that_is_always_right_or_worse_than_chance_gets_an_end_of_the_range() -> None:
    """There the loss falls without end, as T goes to 0 or to infinity; what is reported stays a number."""
    right = 0.01 * np.eye(3)
    assert best_temperature(right, [0, 1, 2]) == pytest.approx(MIN_TEMPERATURE)
    assert best_temperature(right, [1, 2, 0]) == MAX_TEMPERATURE
    assert MIN_TEMPERATURE < best_temperature(np.eye(3), [0, 1, 0]) < MAX_TEMPERATURE


def test_logits_that_are_no_numbers_have_no_temperature() -> None:
    """A broken model must not be reported as a calibrated one."""
    assert math.isnan(best_temperature(np.array([[math.nan, 0.0], [1.0, 0.0]]), [0, 1]))
    assert math.isnan(best_temperature(np.array([[math.inf, 0.0], [1.0, 0.0]]), [0, 1]))
