"""Triangles, transitivity and single references, against loops over all triples."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from planted_basins import planted

from evals.clusters.distances import summary_matrices
from evals.clusters.reference import agreement, references, triangles


def test_violations_are_those_of_a_loop_over_ordered_triples() -> None:
    draw = np.random.default_rng(0).random((6, 6))
    distances = (draw + draw.T) * ~np.eye(6, dtype=bool)
    distances[1, 4] = distances[4, 1] = np.nan
    found = triangles(distances, 0.9)
    over, closed = {}, []
    for i, j, k in permutations(range(6), 3):
        excess = distances[i, k] - distances[i, j] - distances[j, k]
        if np.isfinite(excess):
            over[i, j, k] = excess
            if distances[i, j] <= 0.9 and distances[j, k] <= 0.9:
                closed.append(distances[i, k] <= 0.9)
    assert (found.triples, found.violated) == (len(over), sum(value > 1e-10 for value in over.values()))
    assert found.worst == pytest.approx(max(over.values()))
    assert found.triple is not None
    assert over[found.triple] == pytest.approx(found.worst)
    assert found.transitive == pytest.approx(np.mean(closed))


def test_distances_of_points_violate_nothing() -> None:
    points = np.random.default_rng(1).normal(size=(7, 3))
    found = triangles(np.linalg.norm(points[:, None] - points, axis=-1), 0.0)
    assert (found.violated, found.worst, found.triple, found.transitive) == (0, None, None, None)


def test_any_one_reference_tells_two_planted_basins_apart_but_not_three() -> None:
    """Both other basins are a barrier away from a reference in the third."""
    for sizes, all_of_them in (((4, 4), True), ((3, 3, 3), False)):
        distances = summary_matrices(planted(sizes))["convexity gap"].values
        seen = references(distances, np.repeat(np.arange(len(sizes)), sizes).tolist())
        assert [each.model for each in seen] == list(range(len(distances)))
        assert all(each.rand_index == 1 for each in seen) is all_of_them


def test_two_matrices_agree_as_far_as_they_do() -> None:
    first = np.array([[0, 1, 2.0], [1, 0, 3], [2, 3, 0]])
    second = first + 0.5 * ~np.eye(3, dtype=bool)
    found = agreement(first, second)
    assert (found.pairs, found.lower, found.largest) == (3, 1.0, 0.5)
    assert found.correlation == pytest.approx(1)
    assert agreement(second, first).lower == 0
    assert agreement(first, np.where(first == 3, np.nan, first)).pairs == 2
