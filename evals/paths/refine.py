"""Refine the grid of a line where its curve bends, so that a narrow hill or a kink is not between two points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A point bends the curve where it is further from the chord of its neighbours than this share of the curve's range.
BEND_SHARE = 0.01
# What float32 may round a mean loss by: bends below it are noise.
LEAST_BEND = 1e-5
LEAST_STEP = 1 / 256
# How many times as many points as the even grid has are measured at most.
MOST_TIMES = 4


def even_grid(points: int) -> list[float]:
    """Return the even grid from 0 to 1."""
    return [k / (points - 1) for k in range(points)]


def refine(lam: Sequence[float], curves: Sequence[Sequence[float]], room: int) -> list[float]:
    """Return the lam to measure next: the middles of the steps on either side of every bend, the largest bends first.

    None where every point of every curve is within BEND_SHARE of its range from the chord of its neighbours.

    Args:
        lam: measured, increasing.
        curves: the losses there, one list for each data set.
        room: how many may be returned.
    """
    grid = np.asarray(lam, dtype=np.float64)
    bends = np.max([_bends(grid, np.asarray(curve, dtype=np.float64)) for curve in curves], axis=0)
    chosen: dict[float, None] = {}
    for k in sorted(range(1, len(grid) - 1), key=lambda k: -bends[k - 1]):
        if bends[k - 1] <= 1:
            break
        for left, right in ((k - 1, k), (k, k + 1)):
            if grid[right] - grid[left] > LEAST_STEP:
                chosen[float((grid[left] + grid[right]) / 2)] = None
    return sorted(list(chosen)[: max(room, 0)])


def _bends(grid: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Return how far each inner point is from the chord of its neighbours, as a multiple of what is tolerated."""
    weight = (grid[1:-1] - grid[:-2]) / (grid[2:] - grid[:-2])
    heights = np.abs(curve[1:-1] - ((1 - weight) * curve[:-2] + weight * curve[2:]))
    bends: np.ndarray = heights / max(BEND_SHARE * (curve.max() - curve.min()), LEAST_BEND)
    return bends
