"""Temperature: the one number by which logits are divided that makes the loss on given rows least.

A model half way between two others is often only unsure: its logits are too small, its classes in the right order. The loss
at the best temperature T, min_T mean(-log softmax(z / T)[gold]), tells that from a model that is wrong. T is fitted on the
very rows whose loss is reported, ends and middle alike: one number for thousands of rows, which flatters each of them by
about as much as one parameter can (a loss of the order of 1 / rows).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Temperatures are looked for between these. A model that is never wrong wants none, one worse than chance an endless one.
COLDEST, HOTTEST = 1e-3, 1e3
STEPS = 200
# Of the inverse temperature: how near is near enough.
NEAR = 1e-12


def best_temperature(logits: Any, gold: Any) -> float:
    """Return the temperature at which the mean cross-entropy is least, within [COLDEST, HOTTEST]; nan for logits that are.

    With c = 1 / T the loss is convex; its slope mean(sum_k p_k z_k - z_gold) is brought to zero by Newton's method, and by
    halving the bracket where a step would leave it.

    Args:
        logits: shape (rows, classes); computed in float64.
        gold: class of each row.
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(logits).all():
        return math.nan
    rows = logits - logits[np.arange(len(logits)), np.asarray(gold)][:, None]
    low, high, at = 1 / HOTTEST, 1 / COLDEST, 1.0
    if _slope(rows, low)[0] >= 0:
        return HOTTEST
    if _slope(rows, high)[0] <= 0:
        return COLDEST
    for _ in range(STEPS):
        slope, bend = _slope(rows, at)
        low, high = (at, high) if slope < 0 else (low, at)
        after = at - slope / bend if bend > 0 else math.inf
        if not low < after < high:
            after = math.sqrt(low * high)
        if abs(after - at) <= NEAR * at:
            break
        at = after
    return 1 / after


def _slope(rows: Any, inverse: float) -> tuple[float, float]:
    """Return first and second derivative of the mean loss by the inverse temperature; rows are relative to the gold logit."""
    scaled = rows * inverse
    weight = np.exp(scaled - scaled.max(1, keepdims=True))
    share = weight / weight.sum(1, keepdims=True)
    mean = (share * rows).sum(1)
    return float(mean.mean()), float((share * (rows - mean[:, None]) ** 2).sum(1).mean())
