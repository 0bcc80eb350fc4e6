"""The official scores of rows with integer weights, for the thousands of draws of a bootstrap.

A weighted score takes gold and predicted values, shape (rows,), and integer weights, shape (draws, rows), and returns one
score a draw, shape (draws,). With weights of 1 it is the score of the rows; with other weights, that of the repeated
rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from evals.tasks.task import METRICS
from merge.errors import TaskError, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Weighted = Callable[[Array, Array, Array], Array]


def score_names(metric: str) -> tuple[str, ...]:
    """Return the names of a metric's scores.

    Raises:
        TaskError: there is no metric of that name.
    """
    if metric not in METRICS:
        raise TaskError(f"there is no metric {metric!r}.{nearest(metric, METRICS)}")
    return METRICS[metric]


def accuracy(gold: Array, predicted: Array, weights: Array) -> Array:
    """Return the share of rows predicted right."""
    return weights @ (gold == predicted) / weights.sum(1)


def f1(gold: Array, predicted: Array, weights: Array) -> Array:
    """Return 2 TP / (2 TP + FP + FN) of class 1; 0 where class 1 is neither gold nor predicted."""
    import numpy as np

    hits = weights @ ((gold == 1) & (predicted == 1))
    all_ones = weights @ ((gold == 1).astype(np.int64) + (predicted == 1))
    return 2 * hits / np.maximum(all_ones, 1)


def matthews_correlation(gold: Array, predicted: Array, weights: Array) -> Array:
    """Return the correlation of the classes (n sum_k C_kk - sum_k t_k p_k) / sqrt((n² - sum p²) (n² - sum t²)).

    C counts rows by gold and predicted class, t and p are its margins; 0 where gold or predictions are constant.
    """
    import numpy as np

    classes, index = np.unique(np.stack([gold, predicted]), return_inverse=True)
    t, p = index.reshape(2, -1)
    true, predicted_as = (weights @ (side[:, None] == np.arange(len(classes))).astype(np.float64) for side in (t, p))
    n, right = weights.sum(1).astype(np.float64), (weights @ (t == p)).astype(np.float64)
    spread = (n**2 - (predicted_as**2).sum(1)) * (n**2 - (true**2).sum(1))
    return np.where(
        spread > 0, (n * right - (true * predicted_as).sum(1)) / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0
    )


def pearson(gold: Array, predicted: Array, weights: Array) -> Array:
    """Return Pearson's correlation; nan where gold or predictions are constant or not finite."""
    import numpy as np

    if not (np.isfinite(gold).all() and np.isfinite(predicted).all()):
        return np.full(len(weights), np.nan)
    x, y = gold - gold.mean(), predicted - predicted.mean()
    total = weights.sum(1)
    ex, ey, exx, eyy, exy = (weights @ np.stack([x, y, x * x, y * y, x * y], axis=1)).T / total
    xx, yy = exx - ex**2, eyy - ey**2
    # Below this the variance is the rounding error of a constant.
    varies = (xx > 1e-13 * exx) & (yy > 1e-13 * eyy)
    return _correlation(exy - ex * ey, xx, yy, varies)


def spearmanr(gold: Array, predicted: Array, weights: Array) -> Array:
    """Return Pearson's correlation of the ranks, equal values sharing their mean rank; nan as for `pearson`."""
    import numpy as np

    if not (np.isfinite(gold).all() and np.isfinite(predicted).all()):
        return np.full(len(weights), np.nan)
    # The mean rank is exact in floating point, so the spread of a constant is exactly 0.
    x, y = (_ranks(side, weights) - (weights.sum(1, keepdims=True) + 1) / 2 for side in (gold, predicted))
    xx, yy, xy = (np.einsum("dr,dr,dr->d", weights, u, v) for u, v in ((x, x), (y, y), (x, y)))
    return _correlation(xy, xx, yy, (xx > 0) & (yy > 0))


def _ranks(values: Array, weights: Array) -> Array:
    """Return the mean rank of every row among the repeated rows, shape (draws, rows).

    With B the weight of smaller values and E that of equal ones, their ranks are B + 1 to B + E, with mean B + (E + 1) / 2.
    """
    import numpy as np

    _, index = np.unique(values, return_inverse=True)
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))
    equal = np.add.reduceat(weights[:, order], starts, axis=1)
    below = np.cumsum(equal, axis=1) - equal
    return (below + (equal + 1) / 2)[:, index]


def _correlation(xy: Array, xx: Array, yy: Array, defined: Array) -> Array:
    """Return xy / sqrt(xx yy), and nan where it is undefined."""
    import numpy as np

    spread = np.sqrt(np.where(defined, xx, 1.0)) * np.sqrt(np.where(defined, yy, 1.0))
    return np.where(defined, np.clip(xy / spread, -1.0, 1.0), np.nan)


WEIGHTED: Mapping[str, Weighted] = MappingProxyType(
    {
        "accuracy": accuracy,
        "f1": f1,
        "matthews_correlation": matthews_correlation,
        "pearson": pearson,
        "spearmanr": spearmanr,
    }
)
