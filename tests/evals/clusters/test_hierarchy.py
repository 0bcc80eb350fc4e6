"""Dendrograms and their cuts are scipy's; a block matrix falls into its blocks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import pdist, squareform

from evals.clusters.hierarchy import LINKAGES, cut, leaf_order, link, row_distances
from evals.clusters.labels import ordered_labels, rand_index
from merge.errors import UsageError


def _random(models: int, seed: int = 0) -> np.ndarray:
    return squareform(np.random.default_rng(seed).random(models * (models - 1) // 2))


@pytest.mark.parametrize("how", [*LINKAGES, "rows"])
def test_cuts_are_those_of_scipy(how: str) -> None:
    distances = _random(9)
    expected = linkage(pdist(distances), "single") if how == "rows" else linkage(squareform(distances), how)
    numbers = list(range(1, 10))
    for number, labels in zip(numbers, cut(link(distances, how), numbers), strict=True):
        assert labels.tolist() == ordered_labels(cut_tree(expected, number)[:, 0]).tolist()


def test_equal_distances_are_cut_into_as_many_clusters_as_asked() -> None:
    labels = cut(link(np.zeros((5, 5))), [1, 2, 3, 5])
    assert [len(set(each.tolist())) for each in labels] == [1, 2, 3, 5]


def test_leaves_of_a_block_are_side_by_side() -> None:
    block = np.where(np.equal.outer(np.arange(6) % 2, np.arange(6) % 2), 0.1, 1.0) * ~np.eye(6, dtype=bool)
    order = leaf_order(link(block, ordered=True))
    assert [k % 2 for k in order] in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])


def test_rows_are_compared_over_the_references() -> None:
    distances = _random(5)
    partial = np.full((5, 5), np.nan)
    np.fill_diagonal(partial, 0)
    partial[[0, 2]], partial[:, [0, 2]] = distances[[0, 2]], distances[:, [0, 2]]
    found = row_distances(partial)
    assert found[1, 4] == pytest.approx(np.hypot(*(distances[1, [0, 2]] - distances[4, [0, 2]])))
    with pytest.raises(UsageError, match="no model has a line to all the others"):
        row_distances(np.full((3, 3), np.nan))


def test_labels_have_one_form() -> None:
    assert ordered_labels([7, 7, 3, 3, 3, 1]).tolist() == [1, 1, 0, 0, 0, 2]
    assert ordered_labels([5, 2]).tolist() == [0, 1]


def test_the_rand_index_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import adjusted_rand_score

    draw = np.random.default_rng(1)
    for _ in range(20):
        a, b = draw.integers(0, 3, (2, 12)).tolist()
        assert rand_index(a, b) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)
    assert rand_index([0, 0, 0], [0, 0, 0]) == 1
