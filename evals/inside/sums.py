"""Sums over rows from which distances of two sets of features follow: streamed in float64, in memory that rows do not add to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a figure over rows, or over texts."""

    mean: float
    std: float


class Running:
    """Running sums of a figure over rows."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, values: Float[Tensor, " rows"]) -> None:
        self.count += len(values)
        self.total += float(values.sum())
        self.squares += float(values.square().sum())

    @property
    def spread(self) -> Spread:
        """Mean and standard deviation; nan without rows."""
        if not self.count:
            return Spread(math.nan, math.nan)
        mean = self.total / self.count
        return Spread(mean, math.sqrt(max(self.squares / self.count - mean**2, 0.0)))


class Distance:
    """Running squared norms of two arrays and of their difference.

    `vanilla` is |x - y|^2 / (|x| |y|), `cosine` is 1 - cos(x, y), both of all rows as one vector (Zhou et al. 2023).
    """

    def __init__(self) -> None:
        self.x, self.y, self.gap = 0.0, 0.0, 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows of both."""
        self.add_squares(squares(x), squares(y), squares(x - y))

    def add_squares(self, x: float, y: float, gap: float) -> None:
        """Add |x|^2, |y|^2 and |x - y|^2 of some rows."""
        self.x, self.y, self.gap = self.x + x, self.y + y, self.gap + gap

    @property
    def vanilla(self) -> float:
        scale = math.sqrt(self.x * self.y)
        return self.gap / scale if scale else (0.0 if self.gap == 0 else math.inf)

    @property
    def cosine(self) -> float:
        scale = math.sqrt(self.x * self.y)
        if not scale:
            return 0.0 if self.gap == 0 else 1.0
        # Exact near 0, where 1 - cos from dot products would cancel.
        return max((self.gap - (math.sqrt(self.x) - math.sqrt(self.y)) ** 2) / (2 * scale), 0.0)


def squares(values: Tensor) -> float:
    """Return the sum of squares, in float64."""
    import torch

    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def all_finite(values: Tensor) -> bool:
    """Return whether there is no NaN and no infinity; a finite sum says so without a mask of every value."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def cosine_distances(dot: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return 1 - cos from dot products and squared norms, each of any shape: 0 for two zeros, 1 for one."""
    scale = (x * y).sqrt()
    cosine = (dot / scale.where(scale > 0, scale.new_ones(()))).where(scale > 0, ((x == 0) & (y == 0)).to(dot.dtype))
    return (1 - cosine).clamp_min(0)
