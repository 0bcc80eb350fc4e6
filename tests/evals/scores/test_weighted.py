"""A weighted score is the score of the repeated rows: scikit-learn and scipy are asked about those."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from evals.scores.weighted import WEIGHTED, matthews_correlation, pearson, score_names, spearmanr
from evals.tasks.task import METRICS
from merge.errors import TaskError

ORACLES: dict[str, Any] = {
    "accuracy": sklearn.metrics.accuracy_score,
    "f1": lambda gold, predicted: sklearn.metrics.f1_score(gold, predicted, zero_division=0),
    "matthews_correlation": sklearn.metrics.matthews_corrcoef,
    "pearson": lambda gold, predicted: scipy.stats.pearsonr(gold, predicted)[0],
    "spearmanr": lambda gold, predicted: scipy.stats.spearmanr(gold, predicted)[0],
}


def drawn(name: str, seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return (gold, predicted); numbers with ties on both sides for a correlation, two classes otherwise."""
    rng = np.random.default_rng(seed)
    if name in ("pearson", "spearmanr"):
        gold = rng.integers(0, 11, count) / 2
        return gold, np.round(gold + rng.normal(size=count), 1)
    gold = rng.integers(0, 2, count)
    return gold, np.where(rng.random(count) < 0.7, gold, 1 - gold)


def test_every_score_of_every_metric_has_a_weighted_form() -> None:
    assert set(WEIGHTED) == set(ORACLES) == {name for names in METRICS.values() for name in names}


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_repeat_rows(name: str) -> None:
    """Twenty draws at once, each equal to the oracle on rows written out as often as drawn; 1 each is the plain score."""
    gold, predicted = drawn(name, 0)
    weights = np.random.default_rng(1).integers(0, 4, (20, len(gold)))
    weights[0] = 1
    found = WEIGHTED[name](gold, predicted, weights)
    expected = [ORACLES[name](np.repeat(gold, w), np.repeat(predicted, w)) for w in weights]
    assert found.shape == (20,)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert np.ptp(found) > 0.01  # the control: draws differ, so no one value fits them all


def test_more_than_two_classes_correlate_as_in_scikit_learn() -> None:
    """Names of classes do not matter, only which rows share one: here 3, 7 and 40."""
    rng = np.random.default_rng(2)
    gold = rng.choice([3, 7, 40], 80)
    predicted = np.where(rng.random(80) < 0.6, gold, rng.choice([3, 7, 40], 80))
    weights = rng.integers(0, 3, (5, 80))
    expected = [sklearn.metrics.matthews_corrcoef(np.repeat(gold, w), np.repeat(predicted, w)) for w in weights]
    np.testing.assert_allclose(matthews_correlation(gold, predicted, weights), expected, rtol=0, atol=1e-12)


def test_a_draw_without_variety_is_0_or_nan_as_the_score_itself() -> None:
    """Weights that leave one value: Matthews and F1 are 0, correlations nan; the other draw is untouched by it."""
    gold, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    weights = np.array([[3, 0, 0, 0], [1, 0, 0, 3]])
    assert WEIGHTED["matthews_correlation"](gold, predicted, weights).tolist() == [0.0, 1.0]
    assert WEIGHTED["f1"](gold, predicted, weights).tolist() == [0.0, 1.0]
    # 0.1 + 0.2 has no exact mean: rounding must not pass for variety.
    x, y = np.array([0.1, 0.1, 0.3, 0.7]), np.array([1.1, 1.7, 1.3, 2.9])
    weights = np.array([[3, 7, 0, 0], [1, 1, 1, 1]])
    for score, oracle in ((pearson, scipy.stats.pearsonr), (spearmanr, scipy.stats.spearmanr)):
        constant, varied = score(x, y, weights)
        assert math.isnan(constant)
        assert varied == pytest.approx(oracle(x, y)[0], abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("score", [pearson, spearmanr])
def test_a_number_that_is_not_finite_makes_a_correlation_undefined(score: Any, bad: float) -> None:
    """A rank would hide it: nan must come out, without a warning."""
    weights = np.ones((3, 4), dtype=int)
    assert np.isnan(score(np.arange(4.0), np.array([1, 2, bad, 3]), weights)).all()
    assert not np.isnan(score(np.arange(4.0), np.array([1, 2, 2.5, 3]), weights)).any()


def test_an_unknown_metric_names_the_nearest() -> None:
    assert score_names("mrpc") == ("accuracy", "f1")
    with pytest.raises(TaskError, match="there is no metric 'stbs'. Did you mean 'stsb'"):
        score_names("stbs")


def test_a_draw_of_equal_numbers_has_no_correlation_however_they_are_rounded() -> None:
    """Far from the mean of all rows the variance of a constant is a rounding error, often above 0."""
    rng = np.random.default_rng(0)
    for value, other in rng.normal(size=(200, 2)):
        weights = np.array([[2, 1, 0], [5, 3, 0], [1, 6, 0]])
        assert np.isnan(pearson(np.array([value, value, other]), np.array([1.0, 2.0, 3.0]), weights)).all()
