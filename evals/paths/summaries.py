"""Every summary of a curve that the literature uses, each with its paired standard error and its source.

With L(lam) the mean loss and E(lam) the error rate at (1 - lam) a + lam b, lam from 0 to 1, and d the distance of a and b:

    error barrier          max_lam E - (E(0) + E(1)) / 2
    loss barrier           max_lam L - ((1 - lam) L(0) + lam L(1))
    barrier over the mean  max_lam L - (L(0) + L(1)) / 2
    epsilon                max_lam L - max(L(0), L(1)), at least 0
    convexity gap          max over i < k < j of L_k - the chord from L_i to L_j
    area                   integral of L - min L over the distance from a (trapezoids)
    mean loss              integral of L over the distance from a, divided by d
    distance               |a - b| over all weights that are interpolated

Given the points at which the maxima are, each but the last is sum_k c_k L_k. The same rows are measured at every point, so the
standard error is that of the mean of each row's own sum_k c_k l_k. It takes the points as given: where two points are nearly as
high, the maximum is less certain than it says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evals.paths.line import convexity_gap

# Summary -> where it is defined.
SOURCES = {
    "error barrier": "Frankle et al. 2020, arXiv:1912.05671, section 2",
    "loss barrier": "Entezari et al. 2022, arXiv:2110.06296, definition 2",
    "barrier over the mean": "Ainsworth et al. 2023, arXiv:2209.04836, figures",
    "epsilon": "linear mode connectivity up to epsilon, over the worse endpoint",
    "convexity gap": "Juneja et al. 2023, arXiv:2205.12411, section 3",
    "area": "Juneja et al. 2023, their code (AreaUnderCurve)",
    "mean loss": "Garipov et al. 2018, arXiv:1802.10026, eval_curve.py",
    "distance": "Euclidean, over the weights that are interpolated",
}


@dataclass(frozen=True)
class Summary:
    """One number for a curve.

    Attributes:
        name: a key of SOURCES.
        standard_error: paired, over the rows; None for one row, and where the value is the same whatever the rows are: a maximum
            at an end, a distance.
        at: the lam of the maximum; of the convexity gap (lam_i, lam_k, lam_j); empty where there is no such point.
    """

    name: str
    value: float
    standard_error: float | None
    at: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the entry of results.json."""
        return {**asdict(self), "at": list(self.at), "source": SOURCES[self.name]}


@np.errstate(invalid="ignore")  # inf - inf is nan, as it should be
def summarise(lam: Sequence[float], losses: Any, correct: Any, distance: float) -> tuple[Summary, ...]:
    """Return every summary of a curve, in the order of SOURCES.

    Args:
        lam: increasing from 0 to 1, not necessarily even; shape (points,).
        losses: of each row at every point, shape (points, rows).
        correct: whether each row is right at every point, of the same shape; None where the loss is that of a number, which is
            neither right nor wrong, so that there is no error barrier.
        distance: of the endpoints.
    """
    grid, losses = np.asarray(lam, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    mean = losses.mean(1)
    ends = np.zeros((2, len(grid)))
    ends[0, 0] = ends[1, -1] = 1
    peak, worse = int(mean.argmax()), 0 if mean[0] >= mean[-1] else 1
    chord = np.outer(1 - grid, ends[0]) + np.outer(grid, ends[1])
    above = int((mean - ((1 - grid) * mean[0] + grid * mean[-1])).argmax())
    gap = convexity_gap(grid, mean)[1]
    steps = np.diff(grid)
    trapezoids = (np.append(steps, 0) + np.append(0, steps)) / 2
    unit = np.eye(len(grid))
    half = (ends[0] + ends[1]) / 2
    area = distance * (trapezoids - unit[mean.argmin()])

    def at(index: int) -> tuple[float, ...]:
        return (float(grid[index]),)

    def error_barrier() -> tuple[Summary, ...]:
        if correct is None:
            return ()
        errors = 1.0 - np.asarray(correct, dtype=np.float64)
        wrong = int(errors.mean(1).argmax())
        return (_linear("error barrier", unit[wrong] - half, errors, at(wrong)),)

    return (
        *error_barrier(),
        _linear("loss barrier", unit[above] - chord[above], losses, at(above)),
        _linear("barrier over the mean", unit[peak] - half, losses, at(peak)),
        _linear("epsilon", unit[peak] - ends[worse], losses, at(peak)),
        _linear("convexity gap", _over_chord(grid, *gap), losses, tuple(float(grid[k]) for k in gap)),
        _linear("area", area, losses, ()),
        _linear("mean loss", trapezoids, losses, ()),
        Summary("distance", float(distance), None),
    )


def _over_chord(grid: Any, i: int, k: int, j: int) -> Any:
    """Return the coefficients of the height at k over the chord from i to j; zeros for i = k = j."""
    unit = np.eye(len(grid))
    weight = (grid[k] - grid[i]) / (grid[j] - grid[i]) if i < j else 0.0
    return unit[k] - (1 - weight) * unit[i] - weight * unit[j]


def _linear(name: str, coefficients: Any, values: Any, at: tuple[float, ...]) -> Summary:
    """Return the summary sum_k c_k mean_k with the standard error of the rows' own sums; nan where a value is not finite."""
    if not np.isfinite(values).all():
        return Summary(name, math.nan, None, at)
    rows = coefficients @ values
    certain = len(rows) < 2 or not coefficients.any()
    return Summary(name, float(rows.mean()), None if certain else float(rows.std(ddof=1) / math.sqrt(len(rows))), at)
