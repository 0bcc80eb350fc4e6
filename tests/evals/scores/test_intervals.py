"""Intervals hold the truth as often as they say, and the tests of difference are those of the textbooks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from quick import quick_on

from evals.scores import intervals
from evals.scores.intervals import (
    accuracy_error,
    bootstrap_draws,
    bootstrap_interval,
    mcnemar,
    paired_difference,
    proportion_interval,
    score_intervals,
)
from evals.scores.weighted import WEIGHTED, accuracy, f1, matthews_correlation, pearson
from merge.errors import TaskError


def guesses(rng: np.random.Generator, gold: np.ndarray, share: float) -> np.ndarray:
    """Return predictions of two classes, each right with probability `share`."""
    return np.where(rng.random(len(gold)) < share, gold, 1 - gold)


def between(interval: Any, value: float, half: float = 1.0) -> bool:
    """Return whether the interval, shrunk about its middle to a `half` of its width, holds the value."""
    middle, width = (interval.low + interval.high) / 2, half * (interval.high - interval.low) / 2
    return middle - width <= value <= middle + width


# ---- one score ----


def test_the_standard_error_of_an_accuracy_is_that_of_its_rows() -> None:
    """sqrt(p (1 - p) / n) = the standard deviation of the 0s and 1s, over sqrt n; 0 where all are alike."""
    rows = np.array([1] * 37 + [0] * 13)
    assert accuracy_error(37, 50) == pytest.approx(rows.std() / math.sqrt(50), abs=1e-15)
    assert accuracy_error(50, 50) == accuracy_error(0, 50) == 0.0
    for hits, count in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(TaskError, match=f"{hits} hits in {count} rows"):
            accuracy_error(hits, count)


@pytest.mark.parametrize(("hits", "count"), [(37, 50), (0, 20), (20, 20), (1, 1), (9_000, 10_000)])
def test_the_interval_of_a_share_is_wilson_s(hits: int, count: int) -> None:
    """Its ends are the roots of (q - p)² = z² q (1 - q) / n; all right is not certain: the lower end is 1 / (1 + z² / n)."""
    z, share = 1.959963984540054, hits / count
    interval = proportion_interval(hits, count)
    roots = np.roots([1 + z * z / count, -(2 * share + z * z / count), share**2])
    assert (interval.low, interval.high) == pytest.approx(sorted(roots.real), abs=1e-9)
    assert (interval.level, interval.method) == (0.95, "Wilson")
    assert interval.high - interval.low > 1e-3
    if hits == count:
        assert interval.low == pytest.approx(1 / (1 + z * z / count), abs=1e-9)
        assert interval.high == 1.0


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)]
)
def test_the_interval_of_a_share_is_as_published(hits: int, count: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3: the score interval to four digits."""
    interval = proportion_interval(hits, count)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_the_interval_of_an_accuracy_holds_the_truth_as_often_as_it_says() -> None:
    """2,000 samples of 120 rows at p = 0.85: 95 % within simulation error; half the width holds it far less often."""
    hits = np.random.default_rng(0).binomial(120, 0.85, 2000)
    intervals_of = {int(h): proportion_interval(int(h), 120) for h in np.unique(hits)}
    found = [intervals_of[int(h)] for h in hits]
    assert 0.935 < np.mean([between(one, 0.85) for one in found]) < 0.97
    assert np.mean([between(one, 0.85, half=0.5) for one in found]) < 0.75


@pytest.mark.parametrize("name", quick_on(("f1", "pearson"), ("matthews_correlation", "f1", "pearson", "spearmanr")))
def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say(name: str) -> None:
    """300 samples of 150 rows from a known law: coverage is near 95 %; of half the width, it is not.

    Two equally likely classes, right with 0.8: F1 0.8, Matthews 0.6. Normal x, y = x + noise of equal variance: Pearson
    sqrt(1/2), Spearman 6/pi asin(r/2).
    """
    rng, draws = np.random.default_rng(5), np.random.default_rng(6)
    truth = {"f1": 0.8, "matthews_correlation": 0.6, "pearson": math.sqrt(0.5)}
    truth["spearmanr"] = 6 / math.pi * math.asin(truth["pearson"] / 2)
    found = []
    for _ in range(300):
        if name in ("pearson", "spearmanr"):
            gold = rng.normal(size=150)
            predicted = gold + rng.normal(size=150)
        else:
            gold = rng.integers(0, 2, 150)
            predicted = guesses(rng, gold, 0.8)
        found.append(bootstrap_interval(WEIGHTED[name], (gold, predicted), draws, draws=300))
    assert 0.90 < np.mean([between(one, truth[name]) for one in found]) <= 0.98
    assert np.mean([between(one, truth[name], half=0.5) for one in found]) < 0.8


def test_the_bootstrap_s_standard_error_of_an_accuracy_is_the_formula_s() -> None:
    """The one score for which it is known: sqrt(p (1 - p) / n), within the error of 4,000 draws (1.1 %, four times over)."""
    rng = np.random.default_rng(1)
    gold = rng.integers(0, 3, 500)
    predicted = np.where(rng.random(500) < 0.7, gold, (gold + 1) % 3)
    found = bootstrap_interval(accuracy, (gold, predicted), np.random.default_rng(2), draws=4000)
    assert found.standard_error == pytest.approx(accuracy_error(int((gold == predicted).sum()), 500), rel=0.045)


def test_the_bootstrap_agrees_with_scipy_s() -> None:
    """scipy resamples rows one by one; the ends agree within the error of 3,000 draws, which is far below the width."""
    rng = np.random.default_rng(3)
    gold = rng.integers(0, 2, 200)
    predicted = guesses(rng, gold, 0.75)
    ours = bootstrap_interval(f1, (gold, predicted), np.random.default_rng(4), draws=3000)

    def by_hand(g: np.ndarray, p: np.ndarray, axis: int) -> np.ndarray:
        return 2 * (g * p).sum(axis) / (g + p).sum(axis)

    theirs = scipy.stats.bootstrap(
        (gold, predicted), by_hand, paired=True, n_resamples=3000, method="percentile", rng=np.random.default_rng(4)
    )
    width = ours.high - ours.low
    assert abs(ours.low - theirs.confidence_interval.low) < 0.12 * width
    assert abs(ours.high - theirs.confidence_interval.high) < 0.12 * width
    assert abs(ours.standard_error - theirs.standard_error) < 0.12 * theirs.standard_error


@pytest.mark.parametrize("few", [True, False])
def test_draws_are_multinomial_whichever_way_they_are_made(few: bool) -> None:
    """Each row is drawn once on average, with variance 1 - 1/n; few distinct rows and many take different ways."""
    values = np.arange(40) % 4 if few else np.arange(40)
    seen: list[np.ndarray] = []

    def keep(_: Any, weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return weights[:, 0].astype(float)

    bootstrap_draws(keep, (values,), np.random.default_rng(0), draws=20_000)
    weights = np.concatenate(seen)
    times = 10 if few else 1
    assert weights.shape == (20_000, 40 // times)
    assert weights.dtype.kind == "i"
    assert set(weights.sum(1)) == {40}
    np.testing.assert_allclose(weights.mean(0), times, rtol=0, atol=0.1)
    np.testing.assert_allclose(weights.var(0), times * (1 - times / 40), rtol=0.06)


def test_draws_in_pieces_are_the_draws_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by drawing in pieces; a generator goes on where it stopped, so the result is the same."""
    rng = np.random.default_rng(0)
    gold, predicted = rng.normal(size=50), rng.normal(size=50)
    whole = bootstrap_draws(pearson, (gold, predicted), np.random.default_rng(1), draws=100)
    monkeypatch.setattr(intervals, "MAX_WEIGHTS", 350)
    pieces = bootstrap_draws(pearson, (gold, predicted), np.random.default_rng(1), draws=100)
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-12)
    assert np.abs(bootstrap_draws(pearson, (gold, predicted), np.random.default_rng(2), draws=100) - whole).max() > 0.01


def test_a_draw_scores_each_row_as_often_as_it_is_drawn() -> None:
    """scikit-learn's F1 of rows that are repeated by their weights equals the weighted F1, but for rounding."""

    def repeated_rows_f1(gold: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.array([sklearn.metrics.f1_score(gold.repeat(w), predicted.repeat(w)) for w in weights])

    rng = np.random.default_rng(0)
    gold = rng.integers(0, 2, 80)
    columns = gold, guesses(rng, gold, 0.7)
    slow = bootstrap_draws(repeated_rows_f1, columns, np.random.default_rng(1), draws=200)
    np.testing.assert_allclose(bootstrap_draws(f1, columns, np.random.default_rng(1), draws=200), slow, atol=1e-12)


def test_an_undefined_score_has_no_interval_and_says_how_many_draws_had_one() -> None:
    """Constant predictions correlate with nothing; one that is constant in some draws only is quoted without these."""
    gold = np.arange(6.0)
    none = bootstrap_interval(pearson, (gold, np.full(6, 2.5)), np.random.default_rng(0))
    assert math.isnan(none.low)
    assert math.isnan(none.high)
    assert none.method == "bootstrap, 0 draws"
    some = bootstrap_interval(pearson, (gold, np.array([1.0, 1, 1, 1, 1, 2])), np.random.default_rng(0), draws=1000)
    # The odd row is missing from (5/6)^6 = 33.5 % of the draws.
    left = int(some.method.split()[1].replace(",", ""))
    assert 600 < left < 730
    assert some.low <= some.high


def test_columns_without_rows_or_of_two_lengths_are_refused() -> None:
    for columns in ((), ([], []), ([1, 2], [1])):
        with pytest.raises(TaskError, match="one length of at least 1"):
            bootstrap_interval(accuracy, columns, np.random.default_rng(0))


def test_a_metric_s_intervals_are_of_its_scores_and_of_the_seed() -> None:
    """Wilson's for a share, the bootstrap's for the rest; the same seed gives the same digits, another other ones."""
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 2, 100)
    predicted = guesses(rng, gold, 0.8)
    found = score_intervals("mrpc", predicted.tolist(), gold.tolist(), seed=3)
    assert {name: one["method"] for name, one in found.items()} == {
        "accuracy": "Wilson",
        "f1": "bootstrap, 2,000 draws",
    }
    assert found["accuracy"] == proportion_interval(int((gold == predicted).sum()), 100).to_json()
    assert found["f1"]["low"] < sklearn.metrics.f1_score(gold, predicted) < found["f1"]["high"]
    assert score_intervals("mrpc", predicted.tolist(), gold.tolist(), seed=3) == found
    assert score_intervals("mrpc", predicted.tolist(), gold.tolist(), seed=4)["f1"] != found["f1"]


# ---- two models ----


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (3, 3), (1, 9), (12, 4), (40, 61), (0, 1)])
def test_mcnemar_is_the_sign_test_of_the_rows_that_differ(only_a: int, only_b: int) -> None:
    """Twice the smaller tail, by sums of binomial coefficients; rows that both have right count for nothing."""
    a = np.array([True] * 30 + [True] * only_a + [False] * only_b + [False] * 7)
    b = np.array([True] * 30 + [False] * only_a + [True] * only_b + [False] * 7)
    found = mcnemar(a, b)
    differ = only_a + only_b
    assert (found.only_a, found.only_b) == (only_a, only_b)
    tail = sum(math.comb(differ, k) for k in range(min(only_a, only_b) + 1)) / 2**differ
    assert found.p == pytest.approx(min(1.0, 2 * tail), abs=1e-12)
    assert mcnemar(b, a).p == found.p


def test_mcnemar_needs_the_same_rows() -> None:
    with pytest.raises(TaskError, match="the same rows for both models; found 2 and 3"):
        mcnemar([True, False], [True, False, True])


@pytest.mark.slow
def test_equal_models_seldom_differ_and_unequal_ones_do() -> None:
    """400 pairs of 300 rows: equally good, p < 0.05 at most 5 % of the time (exact tests are cautious); 20 points apart, always
    nearly. The interval of the difference says the same."""
    rng = np.random.default_rng(0)
    p_values: dict[float, list[float]] = {0.75: [], 0.55: []}
    differences: dict[float, list[Any]] = {0.75: [], 0.55: []}
    for accuracy_of_b in p_values:
        for k in range(400):
            gold = rng.integers(0, 2, 300)
            a, b = guesses(rng, gold, 0.75), guesses(rng, gold, accuracy_of_b)
            p_values[accuracy_of_b].append(mcnemar(gold == a, gold == b).p)
            if k % 4 == 0:
                differences[accuracy_of_b].append(paired_difference(accuracy, gold, a, b, rng))
    assert np.mean([p < 0.05 for p in p_values[0.75]]) < 0.07
    assert np.mean([p < 0.05 for p in p_values[0.55]]) > 0.98
    assert np.mean([between(interval, 0.0) for interval in differences[0.75]]) > 0.9
    assert np.mean([between(interval, 0.2) for interval in differences[0.55]]) > 0.9
    assert np.mean([between(interval, 0.0) for interval in differences[0.55]]) < 0.02


def test_a_paired_difference_is_surer_than_two_models_apart() -> None:
    """Models that err on the same rows: the standard error is sqrt((b + c) / n² - d² / n), not that of two samples."""
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 2, 1000)
    a = guesses(rng, gold, 0.8)
    b = np.where(rng.random(1000) < 0.05, 1 - a, a)
    found = paired_difference(accuracy, gold, a, b, np.random.default_rng(1))
    test = mcnemar(gold == a, gold == b)
    difference = (test.only_a - test.only_b) / 1000
    expected = math.sqrt((test.only_a + test.only_b) / 1000**2 - difference**2 / 1000)
    assert found.standard_error == pytest.approx(expected, rel=0.045)
    assert found.low < difference < found.high
    apart = math.hypot(*(accuracy_error(int((gold == predicted).sum()), 1000) for predicted in (a, b)))
    assert found.standard_error < 0.6 * apart


def test_the_difference_of_a_model_to_itself_is_nothing() -> None:
    gold = np.array([0, 1, 1, 0, 1])
    predicted = np.array([0, 1, 0, 0, 1])
    found = paired_difference(matthews_correlation, gold, predicted, predicted, np.random.default_rng(0))
    assert (found.low, found.high, found.standard_error) == (0.0, 0.0, 0.0)
    other = paired_difference(matthews_correlation, gold, predicted, gold, np.random.default_rng(0))
    assert other.low < 0
