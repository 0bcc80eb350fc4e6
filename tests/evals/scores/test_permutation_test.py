"""Permutation tests agree with scipy's where all permutations are tried, and are as precise as they promise where not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evals.scores.permutation_test import correlation_test, ranks


def _generator() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
def test_small_cases_have_scipys_exact_p_value(seed: int, ties: bool) -> None:
    """The sum of products orders permutations as their correlation does, and is exact for whole numbers and ranks."""
    draw = np.random.default_rng(seed)
    x, y = draw.normal(size=(2, 6)).round(0 if ties else 9) + 2 * np.eye(2, 6)
    for a, b in ((x, y), (ranks(x), ranks(y))):

        def products(values: np.ndarray, axis: int, a: np.ndarray = a) -> np.ndarray:
            return (values * a).sum(axis)

        reference = stats.permutation_test((b,), products, permutation_type="pairings", n_resamples=np.inf)
        test = correlation_test(a, b, _generator())
        assert test is not None
        assert test.exact
        assert test.p == pytest.approx(reference.pvalue, abs=1e-12)
        assert test.value == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)


@pytest.mark.parametrize("inside", [2, 3, 4])
def test_a_difference_of_means_has_scipys_exact_p_value(inside: int) -> None:
    """Of two groups: the correlation with membership orders all divisions as the difference of means does."""
    scores = np.random.default_rng(inside).normal(size=8).round(1)
    member = np.arange(8) < inside
    test = correlation_test(member, scores, _generator())
    assert test is not None

    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return a.mean(axis) - b.mean(axis)

    reference = stats.permutation_test((scores[member], scores[~member]), difference, n_resamples=np.inf)
    assert (test.exact, test.permutations) == (True, math.comb(8, inside))
    assert test.p == pytest.approx(reference.pvalue, abs=1e-12)


def test_ranks_give_the_spearman_correlation() -> None:
    x, y = np.random.default_rng(3).normal(size=(2, 30)).round(1)
    test = correlation_test(ranks(x), ranks(y), _generator())
    assert test is not None
    assert test.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize(("strength", "least"), [(0.0, 100), (0.35, 1000), (3.0, 10_000)])
def test_the_number_of_permutations_follows_from_the_precision(strength: float, least: int) -> None:
    """Beyond all that can be tried, p has a standard error of a tenth of itself or of 1e-4, and is that of a t test."""
    x, noise = np.random.default_rng(1).normal(size=(2, 60))
    y = strength * x + noise
    test = correlation_test(x, y, _generator())
    assert test is not None
    error = math.sqrt(test.p * (1 - test.p) / test.permutations)
    assert not test.exact
    assert error <= max(test.p / 10, 1e-4)
    assert test.permutations >= least
    assert abs(test.p - stats.pearsonr(x, y).pvalue) <= 5 * error + 0.01 * test.p + 1e-4
    assert correlation_test(x, y, _generator()) == test


def test_constant_scores_have_no_correlation() -> None:
    assert correlation_test(np.arange(5), np.ones(5), _generator()) is None
    assert correlation_test(np.arange(2), np.arange(2), _generator()) is None


def test_the_data_are_one_of_the_permutations_that_were_drawn() -> None:
    """None of those drawn is as high as a perfect correlation, and still p is not 0 (Phipson and Smyth 2010)."""
    x = np.arange(30.0)
    found = correlation_test(x, x, _generator())
    assert found is not None
    assert not found.exact
    assert found.p == 2 / (found.permutations + 1)
