"""Stability counts draws; basins are judged by their largest barrier and what the rows leave open."""

from __future__ import annotations

import numpy as np
import pytest
from planted_basins import planted

from evals.clusters.basins import find_basins, groups_within
from evals.clusters.distances import Matrix, resampled_matrices, summary_matrices
from evals.clusters.extremes import extreme_pairs
from evals.clusters.stability import stability


def _block(labels: list[int]) -> np.ndarray:
    return np.not_equal.outer(labels, labels).astype(float)


def test_models_are_together_as_often_as_they_are_drawn_together() -> None:
    """Three of four draws give the clusters, in the fourth a model changes sides: counted by hand."""
    kept, moved = [0, 0, 0, 1, 1], [0, 0, 1, 1, 1]
    draws = np.stack([_block(kept)] * 3 + [_block(moved)])
    found = stability(draws, "average", np.array(kept))
    assert (found.same, found.draws) == (0.75, 4)
    assert found.together[0].tolist() == [1, 1, 0.75, 0, 0]
    assert found.together[2].tolist() == [0.75, 0.75, 1, 0.25, 0.25]
    # {0, 1, 2} against {0, 1} is 2 / 3, {3, 4} against {2, 3, 4} too.
    assert found.jaccard == pytest.approx([(3 + 2 / 3) / 4] * 2)


def test_draws_that_cannot_be_clustered_are_not_counted() -> None:
    labels = [0, 0, 0, 1, 1]
    found = stability(np.stack([_block(labels), np.zeros((5, 5))]), "spectral", np.array(labels))
    assert (found.draws, found.same) == (1, 1.0)
    assert stability(np.zeros((2, 5, 5)), "spectral", np.array(labels)).draws == 0


def test_a_basin_is_judged_by_its_largest_barrier() -> None:
    losses = planted((3, 3), noise=0.02)
    gaps = summary_matrices(losses)["convexity gap"]
    drawn = resampled_matrices(losses, "convexity gap", np.random.default_rng(0), 100)
    shape, labels = (11, 60), np.array([0, 0, 0, 1, 1, 1])
    first, second = find_basins(gaps, drawn, labels, 0.05, shape)
    inside = {pair: gaps.values[pair] for pair in ((0, 1), (0, 2), (1, 2))}
    assert first.pair == max(inside, key=inside.__getitem__)
    assert first.barrier == pytest.approx(max(inside.values()))
    assert first.outside == second.outside == pytest.approx(gaps.values[:3, 3:].min())
    assert (first.shared, second.shared) == (True, True)
    (all_of_them,) = find_basins(gaps, drawn, np.zeros(6, dtype=int), 0.05, shape)
    assert all_of_them.shared is False
    assert all_of_them.low is not None
    assert all_of_them.high is not None
    assert 0.05 < all_of_them.low < float(all_of_them.barrier or 0) < all_of_them.high
    undecided = find_basins(gaps, drawn, labels, float(first.barrier or 0), shape)[0]
    assert undecided.shared is None


def test_models_alone_and_single_rows_are_not_judged() -> None:
    matrix = Matrix("epsilon", _block([0, 1]), np.zeros((2, 2)))
    drawn = np.stack([matrix.values] * 3)
    alone = find_basins(matrix, drawn, np.array([0, 1]), 0.05, (11, 60))
    assert [(each.barrier, each.shared, each.outside) for each in alone] == [(None, None, 1.0)] * 2
    (together,) = find_basins(matrix, drawn, np.array([0, 0]), 0.05, (11, 1))
    assert (together.barrier, together.shared, together.high) == (1.0, None, None)


def test_groups_have_no_pair_over_the_tolerance() -> None:
    distances = _block([0, 0, 1, 1, 1]) + 0.01 * ~np.eye(5, dtype=bool)
    assert groups_within(distances, 0.02) == ((2, 3, 4), (0, 1))
    assert groups_within(distances, 0.005) == tuple((k,) for k in range(5))
    assert groups_within(np.where(distances > 1, np.nan, distances), 0.02) == ()


def test_extreme_pairs_are_the_nearest_and_the_farthest() -> None:
    losses = planted((3, 2), noise=0.02, correct=True)
    distances = summary_matrices(losses)["convexity gap"].values
    found = {(each.where, each.extreme): each for each in extreme_pairs(losses, distances, [0, 0, 0, 1, 1])}
    between = [(i, j) for i in range(3) for j in (3, 4)]
    assert found["between", "farthest"].models == max(between, key=lambda pair: distances[pair])
    assert found["between", "nearest"].models == min(between, key=lambda pair: distances[pair])
    farthest = found["inside", "farthest"]
    assert farthest.loss == pytest.approx(losses.curve(*farthest.models).mean(1, dtype=float))
    assert farthest.accuracy is not None
    assert len(extreme_pairs(losses, distances, [0] * 5)) == 2
