"""Which models to average: the loss of every subset's average, predicted from single models and midpoints, ranked.

The prediction is that of `evals.paths.averages.average_loss`. With weights u_i, their sum U and the
bends h_ij = 8 ((L_i + L_j) / 2 - L(mid_ij)),

    L(average of S) = sum_S u_i L_i / U - sum_{i<j in S} u_i u_j h_ij / (2 U^2)

It is linear in the losses of the rows, so that its standard error is that of the mean of the rows' own predictions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float64

from evals.clusters.pair_losses import PairLosses
from evals.clusters.subset_search import greedy_subsets, lowest_subsets
from evals.scores.intervals import LEVEL

MOST_EXHAUSTIVE = 20  # models whose subsets are all ranked


@dataclass(frozen=True)
class RankedSubset:
    """The average of some models, and what its loss is predicted to be.

    Attributes:
        models: by their index, in increasing order.
        loss: predicted; standard_error from the rows, low and high at 95 %; None for one row.
        gain: by how much that is lower than the loss of the best model alone; gain_error is paired.
        departure: the largest distance of the curve between two of the models from a parabola: a bound on how far the prediction,
            which takes them to be parabolas, is to be trusted. 0 for one model.
        barrier: the largest distance of two of the models, in the summary of the analysis.
    """

    models: tuple[int, ...]
    loss: float
    standard_error: float | None
    low: float | None
    high: float | None
    gain: float
    gain_error: float | None
    departure: float
    barrier: float

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        return {**asdict(self), "models": list(self.models)}


@dataclass(frozen=True)
class Ranking:
    """The subsets with the lowest predicted loss.

    Attributes:
        how: "exhaustive", or "greedy" from every model on.
        considered: how many subsets of two models or more were ranked.
        subsets: the best, from the lowest loss; of two models or more.
        best_model: the model with the lowest loss alone, as a subset.
        everything: the average of all models; None where a pair was not measured.
        losses: of each model.
        midpoints: losses half way, shape (models, models); nan where not measured and on the diagonal.
        weights: of the models in an average, before they are divided by their sum.
        notes: what the reader is to know.
    """

    how: str
    considered: int
    subsets: tuple[RankedSubset, ...]
    best_model: RankedSubset
    everything: RankedSubset | None
    losses: tuple[float, ...]
    midpoints: Float64[np.ndarray, "models models"] = field(repr=False)
    weights: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        return {
            "how": self.how,
            "considered": self.considered,
            "subsets": [each.to_json() for each in self.subsets],
            "best_model": self.best_model.to_json(),
            "everything": None if self.everything is None else self.everything.to_json(),
            "losses": list(self.losses),
            "midpoints": [[float(v) if np.isfinite(v) else None for v in row] for row in self.midpoints],
            "weights": list(self.weights),
            "notes": list(self.notes),
        }


def rank_subsets(losses: PairLosses, distances: Any, best: int, weights: Sequence[float] | None = None) -> Ranking:
    """Return the best subsets of the models: of all subsets up to 20 models, of those that a greedy search meets beyond.

    Args:
        distances: barriers between the models, for the record; shape (models, models).
        best: how many subsets are kept.
        weights: of the models, positive; equal when None.
    """
    n = len(losses.models)
    share = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    single = losses.ends.mean(1, dtype=np.float64)
    middles = midpoint_means(losses)
    bends = 8 * ((single[:, None] + single) / 2 - middles)
    exhaustive = n <= MOST_EXHAUSTIVE
    chosen, considered = (lowest_subsets if exhaustive else greedy_subsets)(single, bends, share, best)
    top = int(single.argmin())
    describe = _describer(losses, distances, share, top)
    return Ranking(
        how="exhaustive" if exhaustive else "greedy",
        considered=considered,
        subsets=tuple(describe(models) for models in chosen),
        best_model=describe((top,)),
        everything=describe(tuple(range(n))) if losses.complete else None,
        losses=tuple(single.tolist()),
        midpoints=middles,
        weights=tuple(share.tolist()),
        notes=_notes(losses),
    )


def _notes(losses: PairLosses) -> tuple[str, ...]:
    notes = []
    if losses.middle is None:
        notes.append(
            f"the grid of {len(losses.lam)} points has none half way, so midpoints are those of the parabola through the ends "
            "and the mean of the two nearest points"
        )
    if not losses.complete:
        notes.append("subsets with a pair that was not measured are left out of the ranking")
    return tuple(notes)


def middle_rows(losses: PairLosses, pair: tuple[int, int]) -> Float64[np.ndarray, " rows"]:
    """Return the losses of the rows half way between two models.

    Without a point there, those of the parabola through the ends and the two points beside it: at lam and 1 - lam a parabola's
    mean is the ends' mean minus lam (1 - lam) / 2 h, half way it is that minus h / 8.
    """
    curve = losses.curve(*pair)
    if losses.middle is not None:
        return np.asarray(curve[losses.middle], dtype=np.float64)
    right = len(losses.lam) // 2
    lam, ends = losses.lam[right], (curve[0].astype(np.float64) + curve[-1]) / 2
    beside = (curve[right - 1].astype(np.float64) + curve[right]) / 2
    return np.asarray(ends - (ends - beside) / (4 * lam * (1 - lam)))


def midpoint_means(losses: PairLosses) -> Float64[np.ndarray, "models models"]:
    """Return the mean losses half way; nan on the diagonal and where a pair was not measured."""
    n = len(losses.models)
    middles = np.full((n, n), np.nan)
    for pair in losses.pairs:
        middles[pair] = middles[pair[::-1]] = middle_rows(losses, pair).mean()
    return middles


def predicted_rows(losses: PairLosses, models: Sequence[int], weights: Any = None) -> Float64[np.ndarray, " rows"]:
    """Return what each row's loss by the average of the models would be were it quadratic; only the mean is a prediction.

    Args:
        weights: of all models, shape (models,); equal when None.
    """
    share = np.ones(len(losses.models)) if weights is None else np.asarray(weights, dtype=np.float64)
    share = share / share[list(models)].sum()
    rows = share[list(models)] @ losses.ends[list(models)].astype(np.float64)
    for i, j in combinations(sorted(models), 2):
        mean = (losses.ends[i].astype(np.float64) + losses.ends[j]) / 2
        rows = rows - 4 * share[i] * share[j] * (mean - middle_rows(losses, (i, j)))
    return np.asarray(rows)


def parabola_departures(losses: PairLosses) -> Float64[np.ndarray, "models models"]:
    """Return the largest distance of each curve from the parabola through its ends and its middle; nan where not measured."""
    n, lam = len(losses.models), np.asarray(losses.lam)
    departures = np.full((n, n), np.nan)
    np.fill_diagonal(departures, 0.0)
    for pair in losses.pairs:
        curve = losses.curve(*pair).mean(1, dtype=np.float64)
        bend = 8 * ((curve[0] + curve[-1]) / 2 - middle_rows(losses, pair).mean())
        parabola = (1 - lam) * curve[0] + lam * curve[-1] - lam * (1 - lam) / 2 * bend
        departures[pair] = departures[pair[::-1]] = np.abs(curve - parabola).max()
    return departures


def _describer(losses: PairLosses, distances: Any, share: Any, top: int) -> Any:
    """Return the function from models to their record."""
    departures, reference = parabola_departures(losses), losses.ends[top].astype(np.float64)

    def describe(models: tuple[int, ...]) -> RankedSubset:
        rows = predicted_rows(losses, models, share)
        error, gain_error = row_error(rows), row_error(reference - rows)
        low, high = interval(float(rows.mean()), error)
        pairs = list(combinations(models, 2))
        return RankedSubset(
            models=models,
            loss=float(rows.mean()),
            standard_error=error,
            low=low,
            high=high,
            gain=float((reference - rows).mean()),
            gain_error=gain_error,
            departure=_largest(departures, pairs),
            barrier=_largest(distances, pairs),
        )

    return describe


def _largest(matrix: Any, pairs: Iterable[tuple[int, int]]) -> float:
    return max((float(matrix[pair]) for pair in pairs), default=0.0)


def row_error(rows: Any) -> float | None:
    """Return the standard error of the mean of the rows; None for one row."""
    return float(rows.std(ddof=1) / math.sqrt(len(rows))) if len(rows) > 1 else None


def interval(value: float, error: float | None) -> tuple[float | None, float | None]:
    """Return the interval of a mean at 95 %."""
    from scipy.special import ndtri

    if error is None:
        return None, None
    half = float(ndtri((1 + LEVEL) / 2)) * error
    return value - half, value + half
