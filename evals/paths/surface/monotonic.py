"""Monotonic linear interpolation: does the loss fall all the way from the start of training to its end?

With L(alpha) the loss at (1 - alpha) theta_0 + alpha theta_T:

    monotone        L does not rise between any two points of the grid
    smallest Delta  max over i < j of L_j - L_i, at least 0: the least Delta for which L is Delta-monotone
    bump            a part of the way on which L is over a value that it had before: from the last point before it rises to
                    the first at which it is below that value again. Its height is the most that it rises over that value.

Source: Lucas et al. 2021, arXiv:2104.11044, section 3; Goodfellow et al. 2015, arXiv:1412.6544.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# What float32 may change a mean loss by: a rise below it is none.
LEAST_RISE = 1e-5


@dataclass(frozen=True)
class Bump:
    """A part of the way on which the loss is over a value that it had before.

    Attributes:
        start, top, end: alpha of the last point before the rise, of the highest point, and of the first below the start again;
            the end is 1 where there is none.
        height: of the loss at the top over that at the start.
        closed: whether the loss falls below the value at the start again.
    """

    start: float
    top: float
    end: float
    height: float
    closed: bool

    @property
    def width(self) -> float:
        return self.end - self.start

    def to_json(self) -> dict[str, Any]:
        """Return the entry of results.json."""
        return {**asdict(self), "width": self.width}


def smallest_delta(loss: Sequence[float]) -> tuple[float, int, int]:
    """Return (the largest rise between any two points, the index of its low point and of its high one); (0, 0, 0) without."""
    best, low = (0.0, 0, 0), 0
    for k, value in enumerate(loss):
        if value < loss[low]:
            low = k
        if value - loss[low] > best[0]:
            best = value - loss[low], low, k
    return best


def is_monotone(loss: Sequence[float]) -> bool:
    """Return whether the loss never rises by more than LEAST_RISE."""
    return smallest_delta(loss)[0] <= LEAST_RISE


def bumps(alpha: Sequence[float], loss: Sequence[float]) -> tuple[Bump, ...]:
    """Return the bumps of a curve in their order; none overlap.

    Args:
        alpha: increasing.
    """
    made, k = [], 0
    while k < len(loss) - 1:
        if loss[k + 1] <= loss[k]:
            k += 1
            continue
        end = next((j for j in range(k + 1, len(loss)) if loss[j] < loss[k]), None)
        stop = len(loss) if end is None else end
        top = max(range(k, stop), key=lambda j: loss[j])
        if loss[top] - loss[k] > LEAST_RISE:
            last = alpha[-1] if end is None else alpha[end]
            made.append(Bump(alpha[k], alpha[top], last, loss[top] - loss[k], end is not None))
        k = stop
    return tuple(made)
