"""The loss along the straight line between two models: barrier, epsilon and convexity gap.

With L(lam) the loss at (1 - lam) a + lam b on a fixed set of rows and an even grid of lam from 0 to 1:

    barrier        max_lam L(lam) - ((1 - lam) L(0) + lam L(1))        Entezari et al. 2022, arXiv:2110.06296, def. 2
    epsilon        max_lam L(lam) - max(L(0), L(1)), at least 0        eps-connectedness
    convexity gap  max over sub-segments [i, j] of their barrier       Juneja et al. 2023, arXiv:2205.12411, section 3

The barrier is a maximum, so its interval is that of the whole curve: rows are drawn again, the same ones at every lam, and the
maximum is taken anew in every draw. Where the curve is highest at an end the barrier is 0, and its upper bound is the answer.

The calibrated barrier is the barrier of the losses of every model, endpoints included, at its best temperature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from evals.scores.intervals import LEVEL, Interval, row_weights

SEED = 0  # of the draws of the interval


@dataclass(frozen=True)
class Curve:
    """Losses and accuracies along a path, and the barrier computed from them.

    Attributes:
        barrier_lam: the lam of the barrier.
        convexity_interval: (lam_i, lam_k, lam_j): the segment from lam_i to lam_j whose barrier, at lam_k, is the convexity gap.
        standard_error: of the height at barrier_lam, from the rows' own losses (paired: the same rows at every lam); 0 where that
            is an end, None for one row.
        temperature: the best one at every lam, fitted on the same rows; empty where it was not fitted.
        calibrated: losses at those temperatures.
        calibrated_barrier: the barrier of those losses; None where there are none.
        barrier_interval: of the barrier, as results.json holds intervals; None for one row.
    """

    name: str
    lam: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float | None, ...]
    barrier: float
    barrier_lam: float
    epsilon: float
    convexity_gap: float
    convexity_interval: tuple[float, float, float]
    standard_error: float | None
    temperature: tuple[float, ...] = ()
    calibrated: tuple[float, ...] = ()
    calibrated_barrier: float | None = None
    barrier_interval: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record of results.json."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@np.errstate(invalid="ignore")  # inf - inf is nan, as it should be
def make_curve(
    name: str,
    lam: Sequence[float],
    losses: Any,
    correct: Any,
    temperature: Sequence[float] = (),
    calibrated: Sequence[float] = (),
) -> Curve:
    """Return the curve of per-row losses and per-row correctness.

    Args:
        lam: even grid from 0 to 1, shape (points,).
        losses: float array (points, rows).
        correct: bool array (points, rows); None where the loss is that of a number, which is neither right nor wrong.
        temperature: the best one at every lam, if it was fitted.
        calibrated: mean loss of the rows at that temperature.
    """
    losses = np.asarray(losses, dtype=np.float64)
    grid = np.asarray(lam, dtype=np.float64)
    mean = losses.mean(1)
    above = _above(grid, mean)
    peak = int(above.argmax())
    rows = losses[peak] - ((1 - grid[peak]) * losses[0] + grid[peak] * losses[-1])
    gap, (i, k, j) = convexity_gap(grid, mean)
    return Curve(
        name=name,
        lam=tuple(grid.tolist()),
        loss=tuple(mean.tolist()),
        accuracy=(None,) * len(grid)
        if correct is None
        else tuple(np.asarray(correct, dtype=np.float64).mean(1).tolist()),
        barrier=float(above[peak]),
        barrier_lam=float(grid[peak]),
        epsilon=float(mean.max() - np.maximum(mean[0], mean[-1])),
        convexity_gap=gap,
        convexity_interval=(float(grid[i]), float(grid[k]), float(grid[j])),
        standard_error=float(rows.std(ddof=1) / math.sqrt(len(rows))) if len(rows) > 1 else None,
        temperature=tuple(map(float, temperature)),
        calibrated=tuple(map(float, calibrated)),
        calibrated_barrier=float(_above(grid, np.asarray(calibrated)).max()) if len(calibrated) else None,
        barrier_interval=barrier_interval(grid, losses, np.random.default_rng(SEED)).to_json()
        if len(rows) > 1
        else None,
    )


def _above(grid: Any, mean: Any) -> Any:
    """Return by how much each loss exceeds the straight line between those of the endpoints; points are the last axis."""
    return mean - ((1 - grid) * mean[..., :1] + grid * mean[..., -1:])


def barrier_interval(grid: Any, losses: Any, generator: np.random.Generator) -> Interval:
    """Return the bootstrap interval of the barrier: every draw of rows has a maximum over the curve of its own.

    The upper end is a percentile of these maxima. A maximum of noisy heights is too high on average, so the lower end is the
    highest lower bound of any point, each at a level that makes all of them hold together (Bonferroni).

    Args:
        losses: of each row at every lam, shape (points, rows).
    """
    if not np.isfinite(losses).all():
        return Interval(math.nan, math.nan, math.nan, LEVEL, "bootstrap, 0 draws")
    heights = _above(grid, losses.T)
    count = len(heights)
    drawn = np.concatenate([weights @ heights / count for weights in row_weights(generator, count)])
    maxima, tail = drawn.max(1), (1 - LEVEL) / 2
    low = np.quantile(drawn[:, 1:-1], tail / (len(grid) - 2), axis=0).max() if len(grid) > 2 else 0
    # The ends have the height 0, so no draw is below it but by rounding.
    ends = max(0.0, float(low)), max(0.0, float(np.quantile(maxima, 1 - tail)))
    error = float(maxima.std(ddof=1))
    return Interval(*ends, error, LEVEL, f"bootstrap of the whole curve, {len(maxima):,} draws")


def convexity_gap(lam: Any, loss: Any) -> tuple[float, tuple[int, int, int]]:
    """Return the largest height of the curve over a chord between two of its points, and (i, k, j): at k, over the chord i-j.

    Equals the largest height of the curve over its lower convex hull; 0, with i = k = j, for a convex curve; nan where
    a loss is nan.
    """
    # Python's numbers: the loops below read a few, and numpy takes ten times as long for each.
    lam, loss = np.asarray(lam, dtype=np.float64).tolist(), np.asarray(loss, dtype=np.float64).tolist()
    if any(map(math.isnan, loss)):
        return math.nan, (0, 0, 0)
    hull: list[int] = []
    for k in range(len(lam)):
        while len(hull) > 1 and _turn(lam, loss, hull[-2], hull[-1], k) <= 0:
            hull.pop()
        hull.append(k)
    gap, indices = 0.0, (0, 0, 0)
    for i, j in pairwise(hull):
        for k in range(i + 1, j):
            weight = (lam[k] - lam[i]) / (lam[j] - lam[i])
            height = float(loss[k] - ((1 - weight) * loss[i] + weight * loss[j]))
            if height > gap:
                gap, indices = height, (i, k, j)
    return gap, indices


def _turn(x: Any, y: Any, a: int, b: int, c: int) -> float:
    """Return > 0 where a, b, c turn left, that is, b is below the chord from a to c."""
    return float((x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a]))
