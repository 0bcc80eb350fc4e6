"""Temperature scaling: divide the logits by the number that gives the least loss on given rows.

A model midway between two others is often only less confident: its logits are too small, their order is right. The loss at
the best temperature T, min_T mean(-log softmax(z / T)[gold]), distinguishes it from a model that is wrong. T is fitted on
the rows whose loss is reported, for endpoints and midpoint alike: one parameter for thousands of rows lowers each loss by
about 1 / rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# A model that is always right has its least loss as T goes to 0, one that is worse than chance as T goes to infinity.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3
REL_TOLERANCE = 1e-12


def best_temperature(logits: Any, gold: Any) -> float:
    """Return the temperature with the least mean cross-entropy, between MIN_ and MAX_TEMPERATURE; nan if a logit is not finite.

    With c = 1 / T the loss is convex; its slope mean(sum_k p_k z_k - z_gold) is zero at the least loss (Alefeld, Potra and Shi).

    Args:
        logits: shape (rows, classes); computed in float64.
        gold: class of each row, shape (rows,).
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    from scipy.optimize import toms748

    logits = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(logits).all():
        return math.nan
    margins = logits - logits[np.arange(len(logits)), np.asarray(gold)][:, None]
    # The range spans six orders of magnitude, so the root is searched on a log scale.
    ends = math.log(1 / MAX_TEMPERATURE), math.log(1 / MIN_TEMPERATURE)
    if _slope(ends[0], margins) >= 0:
        return MAX_TEMPERATURE
    if _slope(ends[1], margins) <= 0:
        return MIN_TEMPERATURE
    return math.exp(-toms748(_slope, *ends, args=(margins,), xtol=REL_TOLERANCE))


def _slope(log_inverse: float, margins: Any) -> float:
    """Return the derivative of the mean loss by the inverse temperature exp(log_inverse).

    Args:
        margins: logits less the gold logit of their row, shape (rows, classes).
    """
    scaled = margins * math.exp(log_inverse)
    weight = np.exp(scaled - scaled.max(1, keepdims=True))
    return float(((weight / weight.sum(1, keepdims=True)) * margins).sum(1).mean())
