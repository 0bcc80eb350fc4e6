"""Barrier, epsilon and convexity gap against their definitions, written out in full."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evals.paths.line import Curve, convexity_gap, make_curve

# Mean MNLI losses on the paths between BERTs of two kinds, read off the published figure (Juneja et al. 2023, figure 1),
# each with Entezari's barrier, epsilon and the convexity gap as computed from these ten numbers.
GOLDEN = {
    "gen-gen": (".4814 .4358 .4116 .4064 .4100 .4100 .4064 .4116 .4358 .4814", 0, 0, 0.0036),
    "gen-heur": (".4814 .4344 .4232 .4510 .4951 .5005 .4620 .4350 .4494 .5056", 0.0057, 0, 0.0702),
    "heur-heur": (".5056 .4526 .4292 .4334 .4474 .4474 .4334 .4292 .4526 .5056", 0, 0, 0.0182),
}


def curve_of(losses: np.ndarray, correct: np.ndarray | None = None) -> Curve:
    """Return the curve of losses of shape (points, rows) on an even grid."""
    lam = [k / (len(losses) - 1) for k in range(len(losses))]
    return make_curve("naive", lam, losses, np.zeros(losses.shape, bool) if correct is None else correct)


def all_segments(loss: list[float]) -> float:
    """Return the largest height over any chord, by trying every i <= k <= j."""
    best = 0.0
    for i in range(len(loss)):
        for j in range(i + 1, len(loss)):
            for k in range(i, j + 1):
                chord = loss[i] + (loss[j] - loss[i]) * (k - i) / (j - i)
                best = max(best, loss[k] - chord)
    return best


@pytest.mark.parametrize("points", [3, 4, 11, 25])
def test_the_convexity_gap_is_the_largest_height_over_any_chord(points: int) -> None:
    """The hull finds what trying every segment finds, on 60 random curves, rough ones and walks."""
    generator = np.random.default_rng(points)
    for rough in range(60):
        loss = generator.normal(size=points)
        loss = loss if rough % 2 else loss.cumsum()
        gap, (i, k, j) = convexity_gap(np.linspace(0, 1, points), loss)
        assert abs(gap - all_segments(loss.tolist())) < 1e-12
        assert i < k < j or (gap == 0 and i == k == j)
        shown = loss[k] - (loss[i] + (loss[j] - loss[i]) * (k - i) / max(j - i, 1))
        assert abs(gap - shown) < 1e-12


def test_the_convexity_gap_has_no_direction() -> None:
    """CG(curve) = CG(reversed), although the hull is built from the left."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        loss = generator.normal(size=11)
        grid = np.linspace(0, 1, 11)
        assert abs(convexity_gap(grid, loss)[0] - convexity_gap(grid, loss[::-1])[0]) < 1e-12


def test_an_uneven_grid_is_measured_in_lam_and_not_in_steps() -> None:
    """The chord from 0 to 1 passes lam = 0.25 at a quarter of its rise: 1 - 0.25 x 2 = 0.5, not 1 - 0.5 x 2 = 0."""
    assert convexity_gap([0, 0.25, 1], [0.0, 1.0, 2.0]) == (0.5, (0, 1, 2))


@pytest.mark.parametrize("shape", [lambda x: (x - 0.3) ** 2, lambda x: 0 * x + 0.7, lambda x: 2 - 3 * x, np.exp])
def test_a_convex_curve_has_no_hill(shape: object) -> None:
    """Bowl, level, slope and exponential lie below every chord; their negatives, but the straight ones, do not."""
    lam = np.linspace(0, 1, 11)
    loss = shape(lam)  # type: ignore[operator]
    curve = curve_of(loss[:, None])
    assert curve.convexity_gap < 1e-12
    assert curve.barrier < 1e-12
    assert curve.epsilon == 0
    bent = abs(loss[0] + loss[-1] - 2 * loss[5]) > 1e-9
    assert (curve_of(-loss[:, None]).convexity_gap > 1e-3) == bent


@pytest.mark.parametrize("kind", GOLDEN)
def test_published_curves_have_their_published_figures(kind: str) -> None:
    """The pair of two kinds has a small barrier and a large convexity gap: what the gap was invented to show."""
    text, barrier, epsilon, gap = GOLDEN[kind]
    curve = curve_of(np.array(text.split(), dtype=float)[:, None])
    assert round(curve.barrier, 4) == barrier
    assert round(curve.epsilon, 4) == epsilon
    assert round(curve.convexity_gap, 4) == gap


def test_barrier_and_epsilon_follow_their_formulas() -> None:
    """Computed again with plain sums over 40 random curves: max L - chord, and max L - max of the ends."""
    generator = np.random.default_rng(5)
    positive = 0
    for _ in range(40):
        losses = generator.exponential(size=(9, 6))
        curve = curve_of(losses)
        mean = [sum(row) / 6 for row in losses.tolist()]
        heights = [m - ((8 - k) * mean[0] + k * mean[8]) / 8 for k, m in enumerate(mean)]
        assert abs(curve.barrier - max(heights)) < 1e-12
        assert abs(curve.epsilon - (max(mean) - max(mean[0], mean[8]))) < 1e-12
        assert curve.barrier_lam == heights.index(max(heights)) / 8
        assert curve.convexity_gap >= curve.barrier - 1e-12
        assert curve.barrier >= curve.epsilon - 1e-12
        positive += curve.epsilon > 0
    assert positive > 20


def test_accuracy_is_the_share_of_correct_rows() -> None:
    correct = np.array([[True, True, False, False], [True, False, False, False], [True, True, True, True]])
    assert curve_of(np.ones((3, 4)), correct).accuracy == (0.5, 0.25, 1.0)


def test_the_standard_error_is_that_of_the_mean_of_each_rows_own_barrier() -> None:
    """Paired: rows differ by thousands but every row has the same hill of 1, give or take 0.1."""
    generator = np.random.default_rng(9)
    level, noise = 1000 * generator.normal(size=200), 0.1 * generator.normal(size=200)
    losses = np.stack([level, level + 1 + noise, level])
    curve = curve_of(losses)
    assert curve.standard_error is not None
    assert math.isclose(curve.standard_error, np.std(noise, ddof=1) / math.sqrt(200), rel_tol=1e-6)
    unpaired = np.std(losses[1], ddof=1) / math.sqrt(200)
    assert unpaired > 1000 * curve.standard_error


def test_one_row_has_a_barrier_but_no_standard_error() -> None:
    """A spread cannot be told from one value; 0 would claim certainty."""
    curve = curve_of(np.array([[1.0], [3.0], [2.0]]))
    assert (curve.barrier, curve.epsilon, curve.convexity_gap) == (1.5, 1.0, 1.5)
    assert curve.standard_error is None
    assert curve_of(np.array([[1.0, 1.0], [3.0, 3.0], [2.0, 2.0]])).standard_error == 0


def test_a_broken_point_is_never_a_flat_path() -> None:
    """A loss that is no number makes every figure nan; an infinite one makes them infinite."""
    broken = curve_of(np.array([[1.0], [math.nan], [1.0]]))
    assert all(math.isnan(x) for x in (broken.barrier, broken.epsilon, broken.convexity_gap))
    endless = curve_of(np.array([[1.0], [math.inf], [1.0]]))
    assert (endless.barrier, endless.epsilon, endless.convexity_gap) == (math.inf,) * 3
    dead = curve_of(np.array([[math.inf], [1.0], [1.0]]))
    assert math.isnan(dead.barrier)


def test_the_record_holds_lists_and_numbers_only() -> None:
    """results.json is JSON: tuples become lists, and every figure keeps its name."""
    record = curve_of(np.array([[1.0, 2.0], [2.0, 4.0], [1.0, 2.0]])).to_json()
    assert record["lam"] == [0.0, 0.5, 1.0]
    assert record["loss"] == [1.5, 3.0, 1.5]
    assert record["convexity_interval"] == [0.0, 0.5, 1.0]
    assert (record["temperature"], record["calibrated"], record["calibrated_barrier"]) == ([], [], None)
    assert {type(value) for value in record.values()} <= {str, float, list, dict, type(None)}
    assert set(record) == {
        "name", "lam", "loss", "accuracy", "barrier", "barrier_lam", "epsilon", "convexity_gap", "convexity_interval",
        "standard_error", "temperature", "calibrated", "calibrated_barrier", "barrier_interval",
    }  # fmt: skip


def test_the_calibrated_barrier_is_the_barrier_of_the_calibrated_losses() -> None:
    """By the formula, max of loss - chord, from numbers whose answer is plain: 0.9 - (0.5 + 0.3) / 2 = 0.5."""
    curve = make_curve("naive", [0, 0.5, 1], np.ones((3, 2)), np.zeros((3, 2), bool), [1, 2, 1], [0.5, 0.9, 0.3])
    assert curve.calibrated_barrier == pytest.approx(0.5, abs=1e-12)
    assert (curve.temperature, curve.calibrated) == ((1.0, 2.0, 1.0), (0.5, 0.9, 0.3))
    assert curve.barrier == 0


def test_a_broken_calibrated_loss_is_never_a_flat_path() -> None:
    """As of the raw losses: what is no number stays none."""
    curve = make_curve("naive", [0, 0.5, 1], np.ones((3, 1)), np.zeros((3, 1), bool), [1, 1, 1], [0.5, math.nan, 0.3])
    assert curve.calibrated_barrier is not None
    assert math.isnan(curve.calibrated_barrier)


# ---- the interval ----


def bounds(losses: np.ndarray) -> tuple[float, float, float]:
    interval = curve_of(losses).barrier_interval
    assert interval is not None
    return interval["low"], interval["high"], interval["standard_error"]


def test_a_barrier_of_0_has_an_upper_bound() -> None:
    """A level curve is highest at an end by chance: the heights between are noise, and the bound says how much."""
    generator = np.random.default_rng(2)
    losses = np.concatenate([np.ones((1, 400)), 0.985 + 0.2 * generator.normal(size=(3, 400)), np.ones((1, 400))])
    curve = curve_of(losses)
    assert (curve.barrier, curve.standard_error) == (0, 0)
    low, high, _ = bounds(losses)
    assert low == 0
    assert 0 < high < 0.02


def test_the_interval_of_a_single_hill_is_that_of_its_mean() -> None:
    """Far above the ends and the other points the maximum is always the same point's: a mean, with a mean's interval."""
    generator = np.random.default_rng(3)
    losses = np.stack([np.zeros(900), 3 + generator.normal(size=900), np.full(900, -1.0)])
    low, high, error = bounds(losses)
    rows = losses[1] - (losses[0] + losses[2]) / 2
    assert error == pytest.approx(rows.std() / 30, rel=0.05)
    assert (low, high) == pytest.approx((rows.mean() - 1.96 / 30, rows.mean() + 1.96 / 30), abs=0.01)


@pytest.mark.parametrize(
    ("heights", "name"),
    [((0, 0, 0, 0, 0), "level"), ((0, 0.1, 0.1, 0.1, 0), "flat"), ((0, 0.02, 0.3, 0.05, 0), "hill")],
)
def test_the_interval_holds_the_true_barrier_as_often_as_it_says(heights: tuple[float, ...], name: str) -> None:
    """150 samples of 60 rows: at 95% fewer than 140 of 150 would be a chance of 1 in 100. The bound without resampling of the
    curve, barrier + 1.96 standard errors of the peak, is 0 wherever the peak is an end."""
    generator = np.random.default_rng(7)
    held = fooled = 0
    for _ in range(150):
        losses = np.array(heights)[:, None] + 0.5 * generator.normal(size=(5, 60))
        curve = curve_of(losses)
        assert curve.barrier_interval is not None
        held += curve.barrier_interval["low"] <= max(heights) <= curve.barrier_interval["high"]
        fooled += curve.barrier_lam in (0, 1)
    assert held >= 140, name
    assert fooled > 0 or name != "level"


def test_one_row_has_no_interval_and_a_broken_curve_no_bounds() -> None:
    assert curve_of(np.array([[1.0], [3.0], [2.0]])).barrier_interval is None
    broken = curve_of(np.array([[1.0, 1.0], [math.nan, 2.0], [1.0, 1.0]])).barrier_interval
    assert broken is not None
    assert math.isnan(broken["high"])
