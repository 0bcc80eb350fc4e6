"""The number of clusters: one basin among the answers, by scikit-learn's silhouette and the gap statistic of its paper."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import silhouette_score

from evals.clusters.hierarchy import cut, link
from evals.clusters.number import choose_number, gap_statistic, silhouette


def _points(centres: int, size: int = 5) -> np.ndarray:
    """Return the distances of points about so many places on a circle, far from one another."""
    draw = np.random.default_rng(0)
    around = [np.array([np.cos(k), np.sin(k)]) for k in range(centres)]
    return squareform(pdist(np.concatenate([20 * centre + draw.normal(size=(size, 2)) for centre in around])))


def test_the_silhouette_is_that_of_scikit_learn() -> None:
    distances = _points(3)
    for labels in cut(link(distances), range(2, 15)):
        assert silhouette(distances, labels) == pytest.approx(silhouette_score(distances, labels, metric="precomputed"))


@pytest.mark.parametrize("centres", [1, 2, 3, 4])
def test_points_about_so_many_centres_have_so_many_clusters(centres: int) -> None:
    number = choose_number(_points(centres), "average", "auto", np.random.default_rng(0))
    assert number.chosen == number.by_gap == centres
    assert len(number.numbers) == len(number.silhouettes) == len(number.gaps) == len(number.gap_errors)


def test_the_gap_is_computed_from_distances_alone_as_from_points() -> None:
    """W(k) by its definition over points; the references are drawn along their principal axes, found here by an SVD."""
    draw = np.random.default_rng(2)
    points = np.concatenate([draw.normal(size=(6, 3)), draw.normal(size=(6, 3)) + 9])
    distances = squareform(pdist(points))
    labels = cut(link(distances), [1, 2, 3])
    gaps, errors = gap_statistic(distances, "average", labels, np.random.default_rng(5))

    def log_within(at: np.ndarray, label: np.ndarray) -> float:
        parts = [at[label == c] for c in np.unique(label)]
        floor = 1e-4 * ((at - at.mean(0)) ** 2).sum()
        return float(np.log(sum(((part - part.mean(0)) ** 2).sum() for part in parts) + floor))

    centred = points - points.mean(0)
    axes = centred @ np.linalg.svd(centred)[2].T
    references = [draw.uniform(axes.min(0), axes.max(0), axes.shape) for _ in range(400)]
    logs = np.array([[log_within(r, each) for each in cut(link(squareform(pdist(r))), [1, 2, 3])] for r in references])
    expected = logs.mean(0) - [log_within(points, each) for each in labels]
    assert gaps == pytest.approx(expected, abs=0.1)  # 100 draws against 400 others; s is about .2
    assert errors == pytest.approx(logs.std(0), rel=0.35)


def test_a_number_that_is_given_is_taken_and_the_rules_are_kept() -> None:
    number = choose_number(_points(2), "average", 4, np.random.default_rng(0))
    assert (number.chosen, number.rule, number.by_gap) == (4, "given", 2)
    by_rule = choose_number(_points(2), "average", "silhouette", np.random.default_rng(0))
    assert (by_rule.chosen, by_rule.rule) == (2, "silhouette")


# Convexity gaps that were measured between eight fine-tunes of MiniLM, of which four learned that overlap means entailment and
# four that it does not: far from a metric, 86 of 336 triples violate the triangle inequality.
MEASURED = [
    [0, 0.104, 0.006, 0.018, 0.168, 0.192, 0.204, 0.170],
    [0.104, 0, 0.161, 0.114, 0.571, 0.616, 0.851, 0.860],
    [0.006, 0.161, 0, 0.012, 0.323, 0.286, 0.278, 0.273],
    [0.018, 0.114, 0.012, 0, 0.201, 0.160, 0.228, 0.198],
    [0.168, 0.571, 0.323, 0.201, 0, 0.013, 0.022, 0.040],
    [0.192, 0.616, 0.286, 0.160, 0.013, 0, 0.047, 0.021],
    [0.204, 0.851, 0.278, 0.228, 0.022, 0.047, 0, 0.045],
    [0.170, 0.860, 0.273, 0.198, 0.040, 0.021, 0.045, 0],
]


def test_two_strategies_that_were_trained_are_two_clusters() -> None:
    number = choose_number(MEASURED, "average", "auto", np.random.default_rng(0))
    assert (number.chosen, number.by_silhouette) == (2, 2)
    assert number.by_gap > 1
    assert number.chance < 0.02
    assert cut(link(MEASURED), [2])[0].tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("seed", range(3))
def test_distances_without_clusters_are_one_cluster(seed: int) -> None:
    """Models that are equally far from one another but for noise, and models without barriers, whose gaps are noise about 0."""
    noise = np.triu(np.random.default_rng(seed).normal(size=(8, 8)), 1)
    far = 0.4 * ~np.eye(8, dtype=bool) + 0.05 * (noise + noise.T)
    near = 0.01 * np.abs(noise + noise.T)
    for distances in (far, near):
        assert choose_number(distances, "average", "auto", np.random.default_rng(0)).chosen == 1


def test_a_low_silhouette_says_one_cluster() -> None:
    """Eight models that are all about as far from one another: some number has a positive silhouette, and none has .5."""
    draw = np.random.default_rng(0).uniform(0.9, 1.1, (8, 8))
    distances = np.triu(draw, 1) + np.triu(draw, 1).T
    number = choose_number(distances, "average", "silhouette", np.random.default_rng(0))
    widths = [width for width in number.silhouettes if width is not None]
    assert 0 < max(widths) < 0.5
    assert number.chosen == number.by_silhouette == 1
