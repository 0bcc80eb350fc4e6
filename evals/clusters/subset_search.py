"""The subsets of models whose average has the lowest predicted loss: of all subsets, or of those that a greedy search meets.

Subsets are numbered by their bits. With models 0 to k - 1 done, those with model k follow by one addition each: the sum of losses
of S + k is that of S plus L_k, and the sum of bends that of S plus sum_{i in S} h_ik.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64


def all_predictions(single: Any, bends: Any, share: Any) -> Float64[np.ndarray, " subsets"]:
    """Return the predicted loss of every subset, numbered by its bits; nan for the empty one, and where a pair is missing.

    Args:
        single: losses of the models, shape (models,).
        bends: h_ij, shape (models, models); the diagonal is not read.
        share: weights, shape (models,).
    """
    losses, bent, weight = (np.zeros(1) for _ in range(3))
    for k in range(len(single)):
        with_k = np.zeros(1)  # sum over i in S of u_i h_ik, for subsets S of the models before k
        for i in range(k):
            with_k = np.concatenate([with_k, with_k + share[i] * bends[i, k]])
        losses = np.concatenate([losses, losses + share[k] * single[k]])
        bent = np.concatenate([bent, bent + share[k] * with_k])
        weight = np.concatenate([weight, weight + share[k]])
    weight[0] = np.nan
    return np.asarray(losses / weight - bent / (2 * weight**2))


def lowest_subsets(single: Any, bends: Any, share: Any, best: int) -> tuple[list[tuple[int, ...]], int]:
    """Return the best subsets of two models or more, of all, and how many there are."""
    predicted = all_predictions(single, bends, share)
    for k in range(len(single)):
        predicted[1 << k] = np.nan
    count = int(np.isfinite(predicted).sum())
    predicted = np.where(np.isfinite(predicted), predicted, np.inf)
    near = np.argpartition(predicted, min(best, len(predicted) - 1))[:best]
    order = near[np.lexsort((near, predicted[near]))]
    kept = [int(number) for number in order if np.isfinite(predicted[number])]
    return [tuple(k for k in range(len(single)) if number >> k & 1) for number in kept], count


def greedy_subsets(single: Any, bends: Any, share: Any, best: int) -> tuple[list[tuple[int, ...]], int]:
    """Return the best subsets that a search meets which adds, to each model, the model that gives the lowest loss, and so on."""
    n = len(single)
    inside, bent = np.eye(n, dtype=bool), np.zeros(n)
    losses, weight = share * single, share.astype(np.float64)
    unknown = ~np.isfinite(bends) & ~np.eye(n, dtype=bool)
    bends = np.where(np.isfinite(bends) & ~np.eye(n, dtype=bool), bends, 0.0)
    met: dict[tuple[int, ...], float] = {}
    for _ in range(n - 1):
        total = weight[:, None] + share
        more = bent[:, None] + share * ((inside * share) @ bends)
        predicted = (losses[:, None] + share * single) / total - more / (2 * total**2)
        missing = inside.astype(np.float64) @ unknown > 0
        predicted = np.where(inside | missing, np.inf, predicted)
        added = predicted.argmin(1)
        rows = np.flatnonzero(np.isfinite(predicted[np.arange(len(added)), added]))
        if not len(rows):
            break
        inside, added = inside[rows].copy(), added[rows]
        losses, bent, weight = losses[rows] + share[added] * single[added], more[rows, added], total[rows, added]
        inside[np.arange(len(rows)), added] = True
        for subset, at, member in zip(inside, rows, added, strict=True):
            met[tuple(np.flatnonzero(subset).tolist())] = float(predicted[at, member])
    return sorted(met, key=lambda models: (met[models], models))[:best], len(met)
