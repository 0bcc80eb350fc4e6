"""Predicted against measured: the losses of averages that were made, beside what the midpoints predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from evals.clusters.pair_losses import PairLosses
from evals.clusters.subsets import parabola_departures, predicted_rows, row_error
from evals.scores.permutation_test import ranks
from merge.errors import UsageError


@dataclass(frozen=True)
class VerifiedSubset:
    """The average of some models, predicted and measured.

    Attributes:
        models: by their index.
        error: predicted - measured; error_error is its paired standard error, None for one row.
        departure: the largest distance of the curve between two of the models from a parabola.
    """

    models: tuple[int, ...]
    predicted: float
    measured: float
    measured_error: float | None
    error: float
    error_error: float | None
    departure: float

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        return {**asdict(self), "models": list(self.models)}


@dataclass(frozen=True)
class Verification:
    """How well the predictions hold.

    Attributes:
        subsets: as they were measured.
        rank_correlation: Spearman's, of predicted and measured; None for fewer than 3 subsets, or where all are equal.
        largest_error: the error of the largest magnitude, and of which subset.
        mean_error: mean magnitude of the errors.
        departure_correlation: Spearman's, of the errors' magnitude and the departure from parabolas; None as above.
        best: the subset with the lowest measured loss.
    """

    subsets: tuple[VerifiedSubset, ...]
    rank_correlation: float | None
    largest_error: float
    largest: tuple[int, ...]
    mean_error: float
    departure_correlation: float | None
    best: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        return {
            "subsets": [each.to_json() for each in self.subsets],
            "rank_correlation": self.rank_correlation,
            "largest_error": self.largest_error,
            "largest": list(self.largest),
            "mean_error": self.mean_error,
            "departure_correlation": self.departure_correlation,
            "best": list(self.best),
        }


def verify(losses: PairLosses, measured: Mapping[tuple[int, ...], Any], weights: Any = None) -> Verification:
    """Return predicted against measured losses of averages.

    Args:
        measured: models of an average, by their index -> its losses on the same rows, shape (rows,).
        weights: of the models in an average, shape (models,); equal when None.
    Raises:
        UsageError: nothing was measured; losses have another shape; a pair of the models was not measured.
    """
    if not measured:
        raise UsageError("no average was measured, so that there is nothing to compare predictions with.")
    departures = parabola_departures(losses)
    subsets = tuple(_verified(losses, models, rows, weights, departures) for models, rows in measured.items())
    errors = np.array([each.error for each in subsets])
    worst = int(np.abs(errors).argmax())
    predicted, found = ([getattr(each, name) for each in subsets] for name in ("predicted", "measured"))
    return Verification(
        subsets=subsets,
        rank_correlation=_rank_correlation(predicted, found),
        largest_error=float(errors[worst]),
        largest=subsets[worst].models,
        mean_error=float(np.abs(errors).mean()),
        departure_correlation=_rank_correlation(np.abs(errors), [each.departure for each in subsets]),
        best=min(subsets, key=lambda each: each.measured).models,
    )


def _verified(losses: PairLosses, models: tuple[int, ...], rows: Any, weights: Any, departures: Any) -> VerifiedSubset:
    rows = np.asarray(rows, dtype=np.float64)
    pairs = list(combinations(sorted(models), 2))
    if rows.shape != losses.ends.shape[1:]:
        raise UsageError(f"average of {models}: expected losses of {losses.ends.shape[1:]} rows, found {rows.shape}.")
    if missing := [pair for pair in pairs if pair not in losses.inside]:
        raise UsageError(f"average of {models}: the line between {missing[0]} was not measured.")
    predicted = predicted_rows(losses, models, weights)
    return VerifiedSubset(
        models=models,
        predicted=float(predicted.mean()),
        measured=float(rows.mean()),
        measured_error=row_error(rows),
        error=float(predicted.mean() - rows.mean()),
        error_error=row_error(predicted - rows),
        departure=max((float(departures[pair]) for pair in pairs), default=0.0),
    )


def _rank_correlation(a: Any, b: Any) -> float | None:
    a, b = ranks(a), ranks(b)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])
