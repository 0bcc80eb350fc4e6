"""Whether the models of a cluster share a basin: their largest barrier against a tolerance, with what the rows leave open."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evals.clusters.distances import Matrix
from evals.clusters.labels import members, ordered_labels
from evals.scores.intervals import LEVEL


@dataclass(frozen=True)
class Basin:
    """A cluster and its largest barrier.

    Attributes:
        cluster: its label; models: their indices.
        barrier: the largest between two of the models, and pair: which; None for one model, and where no pair was measured.
        error: standard error of that maximum over resamples of the rows; low and high: its interval at 95 %.
        shared: whether the models share a basin: True where high is within the tolerance, False where low is over it, None where
            the rows are too few to tell, and for one model.
        outside: the least barrier to a model of another cluster; None for one cluster.
    """

    cluster: int
    models: tuple[int, ...]
    barrier: float | None
    pair: tuple[int, int] | None
    error: float | None
    low: float | None
    high: float | None
    shared: bool | None
    outside: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def find_basins(
    barriers: Matrix, drawn: Any, labels: Any, tolerance: float, shape: tuple[int, int]
) -> tuple[Basin, ...]:
    """Return every cluster with its largest barrier.

    The upper end is a percentile of the maxima of resamples. A maximum of noisy heights is too high on average, so the lower end
    is the highest lower bound of any pair, from its height where it is highest, each at a level that makes those of all pairs and
    points hold together (Bonferroni), as for the barrier of one curve.

    Args:
        barriers: nan where not measured.
        drawn: their values for resamples of the rows, shape (draws, models, models).
        labels: of the clusters, shape (models,).
        tolerance: the largest barrier of models that share a basin.
        shape: (points, rows) of a curve; one row has no interval.
    """
    points, rows = shape
    heights = math.comb(points, 3) if barriers.name == "convexity gap" else points - 2
    drawn = drawn if rows > 1 else drawn[:0]
    return tuple(
        _basin(barriers, drawn, label, tuple(models), tolerance, heights)
        for label, models in enumerate(members(labels))
    )


def _basin(matrix: Matrix, drawn: Any, label: int, models: tuple[int, ...], tolerance: float, heights: int) -> Basin:
    from scipy.special import ndtri

    barriers = matrix.values
    others = np.setdiff1d(np.arange(len(barriers)), models)
    outside = barriers[list(models)][:, others]
    outside = outside[np.isfinite(outside)]
    least = float(outside.min()) if outside.size else None
    pairs = [(i, j) for i in models for j in models if i < j and np.isfinite(barriers[i, j])]
    if not pairs:
        return Basin(label, models, None, None, None, None, None, None, least)
    at = tuple(np.array(pairs).T)
    highest = int(barriers[at].argmax())
    barrier, error = float(barriers[at][highest]), None
    low = high = shared = None
    if len(drawn) > 1:
        maxima, tail = drawn[:, at[0], at[1]].max(1), (1 - LEVEL) / 2
        error, high = float(maxima.std(ddof=1)), float(np.quantile(maxima, 1 - tail))
        # Where a height has no standard error it is 0: that of a curve which is highest at an end.
        errors = np.nan_to_num(matrix.errors[at])
        low = max(0.0, float((barriers[at] + ndtri(tail / (len(pairs) * heights)) * errors).max()))
        shared = True if high <= tolerance else False if low > tolerance else None
    return Basin(label, models, barrier, pairs[highest], error, low, high, shared, least)


def groups_within(barriers: Any, tolerance: float) -> tuple[tuple[int, ...], ...]:
    """Return groups of models with no barrier over the tolerance inside, by complete linkage; none where a pair is missing."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if not np.isfinite(barriers).all():
        return ()
    links = linkage(squareform(barriers, checks=False), "complete")
    return tuple(map(tuple, members(ordered_labels(fcluster(links, tolerance, "distance")))))
