"""Clusters as labels: 0 for the largest cluster, so that one clustering has one form."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64


def ordered_labels(labels: Any) -> Int64[np.ndarray, " models"]:
    """Return labels from 0 on: the largest cluster first, of equal ones that with the first model."""
    _, first, index, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(first))
    return np.asarray(rank[index.ravel()])


def members(labels: Any) -> list[list[int]]:
    """Return the models of each cluster, by their index."""
    labels = np.asarray(labels)
    return [np.flatnonzero(labels == label).tolist() for label in range(labels.max() + 1)]


def together(labels: Any) -> Bool[np.ndarray, "*more models models"]:
    """Return whether two models are in one cluster, for labels of shape (..., models)."""
    labels = np.asarray(labels)
    return np.asarray(labels[..., :, None] == labels[..., None, :])


def rand_index(a: Any, b: Any) -> float:
    """Return the adjusted Rand index of two clusterings: 1 where they are one, about 0 where they agree by chance.

    Source: Hubert and Arabie 1985, Journal of Classification 2, 193-218.
    """
    table = np.zeros((max(a) + 1, max(b) + 1))
    np.add.at(table, (np.asarray(a), np.asarray(b)), 1)
    both, rows, columns = (_pairs(counts).sum() for counts in (table, table.sum(1), table.sum(0)))
    chance = rows * columns / _pairs(np.float64(len(a)))
    most = (rows + columns) / 2
    return float((both - chance) / (most - chance)) if most != chance else 1.0


def _pairs(counts: Any) -> Float64[np.ndarray, " ..."]:
    return np.asarray(counts * (counts - 1) / 2)
