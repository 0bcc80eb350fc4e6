"""How far the clusters depend on the rows: how often two models are together when the rows are drawn again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

from evals.clusters.labels import members, together
from evals.clusters.methods import METHODS
from merge.errors import UsageError

# Mean Jaccard index of a cluster with its counterpart, from which it is stable.
STABLE = 0.75


@dataclass(frozen=True)
class Stability:
    """What resampling the rows does to the clusters.

    Attributes:
        together: share of the draws in which two models are in one cluster, shape (models, models).
        jaccard: for each cluster the mean over the draws of the largest Jaccard index with a cluster of the draw; .75 is stable.
        same: share of the draws that give exactly these clusters.
        draws: that could be clustered.
    """

    together: Float64[np.ndarray, "models models"] = field(repr=False)
    jaccard: tuple[float, ...]
    same: float
    draws: int

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        return {
            "together": self.together.tolist(),
            "jaccard": list(self.jaccard),
            "same": self.same,
            "draws": self.draws,
        }


def stability(drawn: Any, method: str, labels: Any) -> Stability:
    """Return how often models are together, and each cluster is found again, over resamples of the rows.

    Args:
        drawn: distances in each draw, complete, shape (draws, models, models).
        method: by which the labels were found; a key of METHODS.
        labels: of the clusters.
    Source: Hennig 2007, Computational Statistics and Data Analysis 52, 258-271 (the Jaccard index, and .75).
    """
    number = int(max(labels)) + 1
    found = []
    for distances in drawn:
        try:
            found.append(METHODS[method](distances, number))
        except UsageError:  # a draw without any barrier has no clusters
            continue
    if not found:
        empty = np.full((len(labels), len(labels)), np.nan)
        return Stability(empty, (float("nan"),) * number, float("nan"), 0)
    drawn_labels = np.stack(found)
    pairs = together(drawn_labels)
    same = (pairs == together(labels)).all((1, 2)).mean()
    jaccard = tuple(_jaccard(drawn_labels, cluster) for cluster in members(labels))
    return Stability(pairs.mean(0), jaccard, float(same), len(found))


def _jaccard(drawn: Any, cluster: list[int]) -> float:
    """Return the mean over the draws of the largest Jaccard index of a cluster with any cluster of the draw."""
    inside = np.zeros(drawn.shape[1], dtype=bool)
    inside[cluster] = True
    found = drawn[:, None, :] == np.arange(drawn.max() + 1)[:, None]
    index = (found & inside).sum(-1) / (found | inside).sum(-1)
    return float(index.max(1).mean())
