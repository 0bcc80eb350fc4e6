"""Linear: the weighted average of the models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """Return sum_m w_m theta_m, with w_m = weights_m / sum(weights) when normalised.

    Attributes:
        weights: one per model; equal when None.
        normalize: divide by the sum of the weights.
    Source: Wortsman et al. 2022, arXiv:2203.05482, section 2 (uniform soup); Frankle et al. 2020, arXiv:1912.05671.
    """

    weights: tuple[float, ...] | None = None
    normalize: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.normalize, bool):
            raise UsageError(f"linear: normalize must be true or false, found {self.normalize!r}.")
        if self.weights is not None and not isinstance(self.weights, tuple):
            raise UsageError(f"linear: weights must be a list, one number per model, found {self.weights!r}.")
        for weight in self.weights or ():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise UsageError(f"linear: weights must be finite numbers, found {weight!r}.")
        if self.weights is not None and self.normalize and abs(math.fsum(self.weights)) < 1e-12:
            raise UsageError(
                f"linear: weights {list(self.weights)} sum to 0 and cannot be normalised. Set normalize=false."
            )

    def check_count(self, models: int) -> None:
        """Stop when the weights are not one per model."""
        if self.weights is not None and len(self.weights) != models:
            raise UsageError(f"linear: {len(self.weights)} weights for {models} models. Give one weight per model.")

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
        weights = self.weights or (1.0,) * len(tensors)
        total = math.fsum(weights) if self.normalize else 1.0
        merged = tensors[0] * (weights[0] / total)
        for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
            merged.add_(tensor, alpha=weight / total)
        return merged
