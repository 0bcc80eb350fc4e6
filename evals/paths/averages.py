"""Predict the loss of an average of models from the losses of the models and of their pairwise midpoints.

For a loss that is quadratic in the weights, with Hessian H, models x_i and weights w_i >= 0 that sum to 1,

    L(sum_i w_i x_i) = sum_i w_i L_i - 1/2 sum_{i<j} w_i w_j h_ij,    h_ij = (x_i - x_j)' H (x_i - x_j)

because L(sum w x) - sum w L = 1/2 (xbar' H xbar - sum_i w_i x_i' H x_i), and the weighted variance of the x_i in the metric of H
is sum_{i<j} w_i w_j h_ij. For w = (1/2, 1/2) that is L(mid_ij) = (L_i + L_j) / 2 - h_ij / 8, so a midpoint gives

    h_ij = 8 ((L_i + L_j) / 2 - L(mid_ij))

and equal weights of n models give mean_i L_i - (1 / (2 n^2)) sum_{i<j} h_ij. Where the loss between two models is no parabola, as
over a barrier, the prediction is of the parabola through the three points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from merge.errors import UsageError


def average_loss(losses: Sequence[float], midpoints: Any, weights: Sequence[float] | None = None) -> float:
    """Predict the loss of the average of models: exact for a loss that is quadratic between them.

    With h_ij = 8 ((L_i + L_j) / 2 - L(mid_ij)), the prediction is sum_i w_i L_i - 1/2 sum_{i<j} w_i w_j h_ij.

    Args:
        losses: of each model, shape (models,).
        midpoints: midpoints[i][j] is the loss half way between models i and j, as `line` with 3 points measures it; symmetric,
            shape (models, models); the diagonal is not read.
        weights: of the models, not negative; divided by their sum. Equal when None.
    Returns:
        The predicted loss, in the unit of the losses.
    Raises:
        UsageError: shapes do not fit, a loss is not finite, midpoints are not symmetric, or weights are negative or all 0.

    Example:
        >>> round(evals.average_loss([0.4, 0.6], [[0, 0.3], [0.3, 0]]), 6)
        0.3
    """
    single, pairs = _numbers("losses", losses), _numbers("midpoints", midpoints)
    share = np.ones(len(single)) if weights is None else _numbers("weights", weights)
    count = len(single)
    if single.ndim != 1 or not count or pairs.shape != (count, count) or share.shape != single.shape:
        raise UsageError(
            f"expected losses and weights of one length n, and n x n midpoints; found losses {single.shape}, midpoints "
            f"{pairs.shape} and weights {share.shape}."
        )
    upper = np.triu_indices(count, 1)
    if not (np.isfinite(single).all() and np.isfinite(pairs[upper]).all() and np.isfinite(share).all()):
        raise UsageError("a loss, midpoint or weight is not finite; leave its model out.")
    if not np.allclose(pairs[upper], pairs.T[upper], rtol=1e-6, atol=1e-9):
        raise UsageError("midpoints are not symmetric: half way from i to j is half way from j to i.")
    if (share < 0).any() or not share.sum() > 0:
        raise UsageError(f"weights must not be negative, and one must be positive; found {share.tolist()}.")
    share = share / share.sum()
    bends = 8 * ((single[:, None] + single) / 2 - pairs)
    return float(share @ single - 0.5 * (np.outer(share, share) * bends)[upper].sum())


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"{name} are not numbers in rows of one length.") from None
