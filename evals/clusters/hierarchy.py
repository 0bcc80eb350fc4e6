"""Hierarchical clustering of models: on their distances, and on rows of the matrix as in the study of two-layer networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from evals.clusters.labels import ordered_labels
from merge.errors import UsageError

# How the distance of two clusters is made from that of their models.
LINKAGES = ("average", "single", "complete")


def row_distances(distances: Any) -> Float64[np.ndarray, "models models"]:
    """Return the Euclidean distance of the models' rows, over the references: models whose lines to all others are measured.

    Where all pairs are measured, all models are references.

    Raises:
        UsageError: no model is.
    """
    from scipy.spatial.distance import pdist, squareform

    distances = np.asarray(distances, dtype=np.float64)
    references = np.isfinite(distances).all(0)
    if not references.any():
        raise UsageError(
            "no model has a line to all the others, so the models cannot be compared. Measure all pairs, or every model "
            "against the same references."
        )
    return np.asarray(squareform(pdist(distances[:, references])))


def link(distances: Any, how: str = "average", ordered: bool = False) -> Float64[np.ndarray, "merges 4"]:
    """Return scipy's linkage of the models.

    Args:
        distances: complete, shape (models, models).
        how: one of LINKAGES; "rows" is single linkage of the rows' Euclidean distances.
        ordered: whether near models are put side by side, which takes longer.
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    if how == "rows":
        distances, how = row_distances(distances), "single"
    condensed = squareform(np.asarray(distances, dtype=np.float64), checks=False)
    return np.asarray(linkage(condensed, how, optimal_ordering=ordered))


def leaf_order(links: Any) -> tuple[int, ...]:
    """Return the models in the order of the dendrogram's leaves."""
    from scipy.cluster.hierarchy import leaves_list

    return tuple(map(int, leaves_list(links)))


def cut(links: Any, numbers: Sequence[int]) -> list[Int64[np.ndarray, " models"]]:
    """Return the labels of exactly so many clusters, for each number; 0 for the largest cluster."""
    models = len(links) + 1
    labels, cuts = np.arange(models), {models: np.arange(models)}
    for merge, (a, b) in enumerate(links[:, :2]):
        labels = np.where((labels == a) | (labels == b), models + merge, labels)
        cuts[models - 1 - merge] = labels
    return [ordered_labels(cuts[number]) for number in numbers]
