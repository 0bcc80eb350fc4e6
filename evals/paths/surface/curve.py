"""Curves through weight space with trained bends: Bezier curves and polygonal chains.

With w_0 = a, bends w_1 .. w_k and w_n = b, n = k + 1, and t from 0 to 1:

    bezier   sum_i C(n, i) (1 - t)^(n - i) t^i w_i
    chain    the straight line from w_i to w_(i+1), for t from i / n to (i + 1) / n

Both start at a and end at b. The bends are trained for the least expected loss at t drawn from [0, 1].

Source: Garipov et al. 2018, arXiv:1802.10026, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Kind of curve -> what it is.
KINDS = {"bezier": "Bezier curve", "chain": "polygonal chain"}


def curve_coefficients(kind: str, bends: int, t: float) -> tuple[float, ...]:
    """Return the coefficients of a, the bends and b at a point of a curve; they sum to 1, and at the ends they are 0 and 1.

    Args:
        kind: a key of KINDS.
        t: from 0 to 1.
    """
    n = bends + 1
    if kind == "bezier":
        return tuple(math.comb(n, i) * (1 - t) ** (n - i) * t**i for i in range(n + 1))
    piece = min(int(t * n), n - 1)
    share = t * n - piece
    return tuple(1 - share if i == piece else share if i == piece + 1 else 0.0 for i in range(n + 1))


@dataclass(frozen=True)
class CurveSummary:
    """The loss along a curve beside the straight line between its ends.

    Attributes:
        barrier: the most that the loss rises over the straight line between the losses of the ends; at t.
        highest: the highest loss, and its t.
        mean: integral of the loss over the length of the curve, divided by that length.
        length: of the curve through weight space.
    """

    barrier: float
    barrier_t: float
    highest: float
    highest_t: float
    mean: float
    length: float


def summarise_curve(t: Sequence[float], loss: Sequence[float], steps: Sequence[float]) -> CurveSummary:
    """Return the summary of the losses at points of a curve.

    Args:
        t: increasing from 0 to 1, shape (points,).
        steps: Euclidean distance of each point from the one before, shape (points - 1,).
    Source: Garipov et al. 2018, their eval_curve.py (mean by length).
    """
    above = [value - ((1 - at) * loss[0] + at * loss[-1]) for at, value in zip(t, loss, strict=True)]
    peak, top = max(range(len(t)), key=above.__getitem__), max(range(len(t)), key=loss.__getitem__)
    length = sum(steps)
    area = sum(step * (left + right) / 2 for step, left, right in zip(steps, loss[:-1], loss[1:], strict=True))
    mean = area / length if length > 0 else loss[0]
    return CurveSummary(max(above[peak], 0.0), t[peak], loss[top], t[top], mean, length)
