"""Every summary of a curve against its definition written out, on the published curves and on random ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from evals.paths.line import convexity_gap
from evals.paths.summaries import SOURCES, Summary, summarise

# Mean MNLI losses read off the published figure (Juneja et al. 2023, figure 1) -> loss barrier, epsilon, barrier over the mean
# and convexity gap, as computed from these ten numbers.
GOLDEN = {
    ".4814 .4358 .4116 .4064 .4100 .4100 .4064 .4116 .4358 .4814": ("0.0000", "0.0000", "0.0000", "0.0036"),
    ".4814 .4344 .4232 .4510 .4951 .5005 .4620 .4350 .4494 .5056": ("0.0057", "0.0000", "0.0121", "0.0702"),
    ".5056 .4526 .4292 .4334 .4474 .4474 .4334 .4292 .4526 .5056": ("0.0000", "0.0000", "0.0000", "0.0182"),
}


def summaries_of(
    losses: np.ndarray, correct: np.ndarray | None = None, lam: np.ndarray | None = None, distance: float = 2.0
) -> dict[str, Summary]:
    """Return the summaries by name; the grid is even unless it is given."""
    grid = np.linspace(0, 1, len(losses)) if lam is None else lam
    correct = np.ones(losses.shape, bool) if correct is None else correct
    return {each.name: each for each in summarise(grid.tolist(), losses, correct, distance)}


@pytest.mark.parametrize("text", GOLDEN, ids=["gen-gen", "gen-heur", "heur-heur"])
def test_published_curves_have_the_figures_of_every_definition(text: str) -> None:
    losses = np.array(text.split(), dtype=float)[:, None]
    found = summaries_of(losses)
    names = ("loss barrier", "epsilon", "barrier over the mean", "convexity gap")
    assert tuple(f"{found[name].value:.4f}" for name in names) == GOLDEN[text]
    values = losses[:, 0].tolist()
    trapezoids = sum((left + right) / 2 / 9 for left, right in itertools.pairwise(values))
    assert found["mean loss"].value == pytest.approx(trapezoids, abs=1e-12)
    assert found["area"].value == pytest.approx(2.0 * (trapezoids - min(values)), abs=1e-12)


def test_the_convexity_gap_of_10_000_curves_is_that_of_every_segment() -> None:
    """Every i < k < j is tried, on all curves at once: rough ones, walks, and curves on an uneven grid."""
    generator = np.random.default_rng(3)
    curves = generator.normal(size=(10_000, 9))
    curves[::2] = curves[::2].cumsum(1)
    for part, grid in (
        (curves[:5000], np.linspace(0, 1, 9)),
        (curves[5000:], np.array([0, *sorted(generator.random(7)), 1])),
    ):
        best = np.zeros(len(part))
        for i, k, j in itertools.combinations(range(9), 3):
            weight = (grid[k] - grid[i]) / (grid[j] - grid[i])
            best = np.maximum(best, part[:, k] - (1 - weight) * part[:, i] - weight * part[:, j])
        gaps = np.array([convexity_gap(grid, curve)[0] for curve in part])
        assert np.abs(gaps - best).max() < 1e-12
        assert (best > 0.1).mean() > 0.9


def by_definition(lam: list[float], loss: list[float], error: list[float]) -> dict[str, float]:
    """Return the maxima by plain Python, as the module's head defines them."""
    chord = [(1 - x) * loss[0] + x * loss[-1] for x in lam]
    return {
        "error barrier": max(error) - (error[0] + error[-1]) / 2,
        "loss barrier": max(value - line for value, line in zip(loss, chord, strict=True)),
        "barrier over the mean": max(loss) - (loss[0] + loss[-1]) / 2,
        "epsilon": max(loss) - max(loss[0], loss[-1]),
        "mean loss": sum(
            (x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(zip(lam, loss, strict=True))
        ),
    }


def test_every_summary_follows_its_formula_on_uneven_grids() -> None:
    """60 random curves of 12 rows; each value is that of the mean curve."""
    generator = np.random.default_rng(8)
    for _ in range(60):
        lam = np.array([0, *sorted(generator.random(5)), 1])
        losses, correct = generator.exponential(size=(7, 12)), generator.random((7, 12)) < 0.5
        found = summaries_of(losses, correct, lam, distance=3.0)
        expected = by_definition(lam.tolist(), losses.mean(1).tolist(), (1 - correct.mean(1)).tolist())
        for name, value in expected.items():
            assert found[name].value == pytest.approx(value, abs=1e-12), name
        assert found["area"].value == pytest.approx(3.0 * (expected["mean loss"] - losses.mean(1).min()), abs=1e-12)
        assert found["convexity gap"].value == pytest.approx(convexity_gap(lam, losses.mean(1))[0], abs=1e-12)
        assert found["distance"] == Summary("distance", 3.0, None)
        assert list(found) == list(SOURCES)


def test_standard_errors_are_paired() -> None:
    """Rows differ by thousands, but each has the same hill give or take 0.1: the error is that of the hills.

    The error of the mean loss, which is of levels and not of differences, is thousands (the control).
    """
    generator = np.random.default_rng(9)
    level, noise = 1000 * generator.normal(size=200), 0.1 * generator.normal(size=200)
    found = summaries_of(np.stack([level, level + 1 + noise, level]))
    expected = np.std(noise, ddof=1) / math.sqrt(200)
    for name in ("loss barrier", "barrier over the mean", "epsilon", "convexity gap"):
        assert found[name].standard_error == pytest.approx(expected, rel=1e-6), name
        assert found[name].value == pytest.approx(1 + noise.mean(), rel=1e-6)
    assert found["area"].standard_error == pytest.approx(expected, rel=1e-6)  # twice the area of half the square
    mean = found["mean loss"].standard_error
    assert mean is not None
    assert mean > 10


def test_the_standard_error_of_the_error_barrier_is_that_of_the_rows_own_differences() -> None:
    """Of 8 rows the middle gets 4 wrong, a gets none and b one of these: each row's own difference is 0, 1 or 1/2."""
    correct = np.ones((3, 8), bool)
    correct[1, :4] = False
    correct[2, 0] = False
    error = summaries_of(np.ones((3, 8)), correct)["error barrier"]
    own = np.array([0.5, 1, 1, 1, 0, 0, 0, 0])
    assert error.value == pytest.approx(own.mean())
    assert error.standard_error == pytest.approx(own.std(ddof=1) / math.sqrt(8))
    assert error.at == (0.5,)


def test_the_places_are_where_the_maxima_are() -> None:
    """A slope from 0 to 8 with one point 3 above it: the highest point over the chord is not the highest point."""
    found = summaries_of(np.array([[0.0], [5.0], [3.5], [6.0], [8.0]]))
    assert found["loss barrier"].at == (0.25,)
    assert found["epsilon"].at == found["barrier over the mean"].at == (1.0,)
    assert found["convexity gap"].at == (0.0, 0.25, 0.5)
    assert found["area"].at == ()


def test_a_maximum_at_an_end_has_no_standard_error_and_neither_has_one_row() -> None:
    """Its value is 0 whatever the rows are, which a standard error of 0 would call certain."""
    bowl = summaries_of(np.array([[2.0, 1.0], [0.5, 0.5], [2.0, 3.0]]))
    assert (bowl["epsilon"].value, bowl["epsilon"].standard_error) == (0, None)
    assert (bowl["loss barrier"].value, bowl["loss barrier"].standard_error) == (0, None)
    assert bowl["mean loss"].standard_error is not None
    single = summaries_of(np.array([[1.0], [3.0], [2.0]]))
    assert {each.standard_error for each in single.values()} == {None}
    assert single["loss barrier"].value == 1.5


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_point_is_never_a_flat_path(broken: float) -> None:
    found = summaries_of(np.array([[1.0], [broken], [1.0]]))
    assert all(math.isnan(found[name].value) for name in SOURCES if name not in ("distance", "error barrier"))


def test_the_record_holds_the_source_of_each() -> None:
    record = summaries_of(np.array([[1.0, 1.0], [2.0, 4.0], [1.0, 1.0]]))["loss barrier"].to_json()
    assert record == {
        "name": "loss barrier", "value": 2.0, "standard_error": pytest.approx(1.0), "at": [0.5],
        "source": SOURCES["loss barrier"],
    }  # fmt: skip
