"""Spectral clustering of models as published, and where each model is between two clusters.

With D the distances and s a scale, models are nodes of a graph with the similarities S = exp(-D^2 / (2 s^2)). The published scale
is 1; with distances of .07 all similarities are then about .998, so a scale from the data is offered beside it.

Source: Juneja et al. 2023, arXiv:2205.12411, section 4, and their code.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from evals.clusters.labels import ordered_labels
from merge.errors import UsageError

PUBLISHED_SCALE = 1.0
SEED = 42  # of the published code
# Below, a similarity is of no use: no path through the graph connects two models.
MIN_SIMILARITY = 1e-12
MIN_MODELS = 4


@dataclass(frozen=True)
class Embedding:
    """Models in the plane of the first two eigenvectors, and the coordinate between two clusters.

    Attributes:
        points: shape (models, 2).
        coordinate: |w - c1| - |w - c2| with c1 the centre of the larger of two clusters: negative there, positive in the other.
        labels: of the two clusters, 0 for the larger.
        scale: of the similarities.
        similarity: the least between two models.
    """

    points: Float64[np.ndarray, "models 2"] = field(repr=False)
    coordinate: Float64[np.ndarray, " models"] = field(repr=False)
    labels: tuple[int, ...]
    scale: float
    similarity: float

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        return {
            "points": self.points.tolist(),
            "coordinate": self.coordinate.tolist(),
            "labels": list(self.labels),
            "scale": self.scale,
            "least_similarity": self.similarity,
        }


def data_scale(distances: Any) -> float:
    """Return the median of the distances that are not 0; the published scale where all are."""
    pairs = np.asarray(distances)[np.triu_indices(len(distances), 1)]
    return float(np.median(pairs[pairs > 0])) if (pairs > 0).any() else PUBLISHED_SCALE


def similarities(distances: Any, scale: float) -> Float64[np.ndarray, "models models"]:
    """Return exp(-D^2 / (2 scale^2))."""
    return np.asarray(np.exp(-(np.asarray(distances, dtype=np.float64) ** 2) / (2 * scale**2)))


def spectral_labels(distances: Any, number: int, scale: float | None) -> Int64[np.ndarray, " models"]:
    """Return the cluster of each model, 0 for the largest: scikit-learn's spectral clustering with the published seed.

    Args:
        distances: complete, shape (models, models).
        scale: None takes it from the data.
    Raises:
        UsageError: fewer models than clusters, or fewer than 4; no two models differ, or none are similar at that scale.
    """
    from sklearn.cluster import SpectralClustering

    if number == 1:
        return np.zeros(len(distances), dtype=np.int64)
    similarity = _similarity(distances, data_scale(distances) if scale is None else scale)
    model = SpectralClustering(n_clusters=number, affinity="precomputed", random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the graph falls apart, which is what clusters are
        return ordered_labels(model.fit_predict(similarity))


def embed(distances: Any, scale: float | None) -> Embedding:
    """Return the models in two dimensions, and the coordinate between the two clusters that k-means finds there.

    Raises:
        UsageError: as `spectral_labels`.
    """
    from sklearn.cluster import KMeans
    from sklearn.manifold import spectral_embedding

    scale = data_scale(distances) if scale is None else scale
    similarity = _similarity(distances, scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        points = spectral_embedding(similarity, n_components=2, drop_first=False, random_state=SEED)
    kmeans = KMeans(2, random_state=SEED, n_init=10).fit(points)
    labels = ordered_labels(kmeans.labels_)
    centres = [points[labels == label].mean(0) for label in (0, 1)]
    near, far = (np.linalg.norm(points - centre, axis=1) for centre in centres)
    return Embedding(points, near - far, tuple(labels.tolist()), scale, float(similarity.min()))


def _similarity(distances: Any, scale: float) -> Any:
    distances = np.asarray(distances, dtype=np.float64)
    pairs = np.triu_indices(len(distances), 1)
    if len(distances) < MIN_MODELS:
        raise UsageError(f"spectral clustering needs {MIN_MODELS} models or more, found {len(distances)}.")
    if not np.isfinite(distances[pairs]).all():
        raise UsageError(
            "spectral clustering needs every pair, and some were not measured. Choose rows or measure all."
        )
    if not (distances[pairs] > 0).any():
        raise UsageError("all distances are 0, so that there is nothing to divide.")
    similarity = similarities(distances, scale)
    if similarity[pairs].max() < MIN_SIMILARITY:
        raise UsageError(f"no two models are similar at a scale of {scale:g}. Choose spectral-scaled.")
    return similarity
