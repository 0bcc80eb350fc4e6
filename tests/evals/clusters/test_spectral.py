"""Spectral clustering is the published one, and the coordinate tells two blocks apart by its sign."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import SpectralClustering

from evals.clusters.labels import ordered_labels
from evals.clusters.spectral import data_scale, embed, spectral_labels
from merge.errors import UsageError


def _blocks(inside: float, between: float, noise: float = 0.0, sizes: tuple[int, int] = (7, 4)) -> np.ndarray:
    block = np.repeat([0, 1], sizes)
    distances = np.where(np.equal.outer(block, block), inside, between)
    draw = noise * np.random.default_rng(0).random(distances.shape)
    return (distances + draw + draw.T) * ~np.eye(len(block), dtype=bool)


def test_published_distances_are_told_apart_at_the_published_scale() -> None:
    """Gaps of .07 against .004 and .018: all similarities are over .99, and two clusters are there all the same."""
    distances = _blocks(0.004, 0.07, noise=0.01)
    similarity = np.exp(-(distances**2) / 2)
    published = SpectralClustering(n_clusters=2, affinity="precomputed", random_state=42).fit_predict(similarity)
    assert similarity.min() > 0.99
    assert spectral_labels(distances, 2, 1.0).tolist() == ordered_labels(published).tolist() == [0] * 7 + [1] * 4
    assert spectral_labels(distances, 2, None).tolist() == [0] * 7 + [1] * 4


@pytest.mark.parametrize("scale", [1.0, None])
def test_the_coordinate_is_negative_in_the_larger_cluster(scale: float | None) -> None:
    embedding = embed(_blocks(0.004, 0.07, noise=0.01), scale)
    assert (np.sign(embedding.coordinate) == [-1] * 7 + [1] * 4).all()
    assert embedding.labels == (0,) * 7 + (1,) * 4
    centres = [embedding.points[list(at)].mean(0) for at in (range(7), range(7, 11))]
    near, far = (np.linalg.norm(embedding.points - centre, axis=1) for centre in centres)
    assert embedding.coordinate == pytest.approx(near - far)


def test_the_scale_of_the_data_is_the_median_distance_that_is_not_0() -> None:
    distances = np.array([[0, 0, 2.0], [0, 0, 4], [2, 4, 0]])
    assert data_scale(distances) == 3
    assert data_scale(np.zeros((3, 3))) == 1


def test_graphs_without_parts_are_one_line() -> None:
    with pytest.raises(UsageError, match="all distances are 0"):
        spectral_labels(np.zeros((5, 5)), 2, 1.0)
    with pytest.raises(UsageError, match="no two models are similar at a scale of 1. Choose spectral-scaled"):
        spectral_labels(_blocks(20, 40), 2, 1.0)
    with pytest.raises(UsageError, match="needs 4 models or more, found 3"):
        embed(np.ones((3, 3)), None)
    assert spectral_labels(np.zeros((5, 5)), 1, 1.0).tolist() == [0] * 5
