"""Matrices hold what the summaries of single lines say, for the rows as they are and for resamples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted_basins import planted

from evals.clusters.distances import (
    DISTANCES,
    find_summary,
    resampled_matrices,
    summary_matrices,
    summary_values,
)
from evals.paths.line import convexity_gap
from evals.paths.summaries import SOURCES, summarise
from merge.errors import UsageError

# Read off the published figure: mean losses inside and between clusters, and their convexity gaps.
PUBLISHED = {
    0.0036: [0.4814, 0.4358, 0.4116, 0.4064, 0.4100, 0.4100, 0.4064, 0.4116, 0.4358, 0.4814],
    0.0702: [0.4814, 0.4344, 0.4232, 0.4510, 0.4951, 0.5005, 0.4620, 0.4350, 0.4494, 0.5056],
    0.0182: [0.5056, 0.4526, 0.4292, 0.4334, 0.4474, 0.4474, 0.4334, 0.4292, 0.4526, 0.5056],
}


def test_many_curves_have_the_published_convexity_gaps() -> None:
    gaps = summary_values("convexity gap", np.linspace(0, 1, 10), list(PUBLISHED.values()))
    assert gaps == pytest.approx(list(PUBLISHED), abs=5e-5)


@pytest.mark.parametrize("name", SOURCES)
def test_many_curves_at_once_have_the_summaries_of_each(name: str) -> None:
    lam, rows = np.linspace(0, 1, 7), np.random.default_rng(0).random((5, 7, 3))
    correct, distance = rows > 0.5, np.arange(1.0, 6.0)
    curves = 1 - correct.mean(2) if name == "error barrier" else rows.mean(2)
    expected = [
        next(each.value for each in summarise(lam, rows[k], correct[k], distance[k]) if each.name == name)
        for k in range(5)
    ]
    assert summary_values(name, lam, curves, distance) == pytest.approx(expected, abs=1e-12)


def test_convexity_gaps_are_those_of_the_hull() -> None:
    lam, curves = np.linspace(0, 1, 11), np.random.default_rng(1).random((300, 11))
    expected = [convexity_gap(lam, curve)[0] for curve in curves]
    assert summary_values("convexity gap", lam, curves) == pytest.approx(expected, abs=1e-12)


def test_matrices_are_symmetric_and_say_what_was_not_measured() -> None:
    losses = planted((2, 2), correct=True)
    few = replace(losses, inside={pair: rows for pair, rows in losses.inside.items() if pair != (1, 2)})
    matrices = summary_matrices(few)
    assert list(matrices) == list(SOURCES)
    for name, matrix in matrices.items():
        assert np.array_equal(matrix.values, matrix.values.T, equal_nan=True)
        assert np.isnan(matrix.values[1, 2])
        assert (
            np.diag(matrix.values).tolist()
            == (few.ends.mean(1, dtype=float) if name == "mean loss" else np.zeros(4)).tolist()
        )
    gap = next(s for s in summarise(few.lam, few.curve(0, 3), few.correct(0, 3), 1.0) if s.name == "convexity gap")
    matrix = matrices["convexity gap"]
    assert (matrix.values[3, 0], matrix.errors[0, 3]) == (gap.value, gap.standard_error)
    assert "error barrier" not in summary_matrices(planted((2, 2)))


@pytest.mark.parametrize("name", DISTANCES)
def test_a_resample_has_the_matrix_of_its_rows(name: str) -> None:
    """The rows are drawn by hand with the same generator: the matrix of a draw is that of the losses on these rows."""
    losses = planted((2, 2), rows=9, points=5, noise=0.3, correct=True)
    drawn = resampled_matrices(losses, name, np.random.default_rng(4), 3)
    generator = np.random.default_rng(4)
    chosen = generator.integers(0, 9, (3, 9))  # how row_weights draws rows that all differ
    for draw, rows in zip(drawn, chosen, strict=True):
        expected = summary_matrices(losses.rows(rows))[name].values
        assert draw == pytest.approx(expected, abs=1e-6)
    if name != "distance":
        assert not np.allclose(drawn[0], drawn[1])


def test_names_of_summaries_are_read_as_people_write_them() -> None:
    losses = planted((2, 2), rows=2)
    assert find_summary("Convexity-Gap", losses) == find_summary("convexity_gap", losses) == "convexity gap"
    with pytest.raises(UsageError, match="Did you mean 'epsilon'"):
        find_summary("epsilom", losses)
