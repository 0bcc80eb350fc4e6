"""Linear: the weighted average of the models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.methods.checks import check_flag, check_weights
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Linear(Method):
    """Return sum_m w_m theta_m, with w_m = weights_m / sum(weights) when normalised.

    Attributes:
        weights: one per model; equal when None.
        normalize: divide by the sum of the weights.
    Source: Wortsman et al. 2022, arXiv:2203.05482, section 2 (uniform soup); Frankle et al. 2020, arXiv:1912.05671.
    """

    weights: tuple[float, ...] | None = None
    normalize: bool = True

    name = "linear"
    elementwise = True
    takes_numpy = True
    spreads_nan = True

    def __post_init__(self) -> None:
        check_flag(self.name, "normalize", self.normalize)
        check_weights(self.name, self.weights, self.normalize, can_turn_off=True)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        weights = self.weights or (1.0,) * len(tensors)
        total = math.fsum(weights) if self.normalize else 1.0
        merged = tensors[0] * (weights[0] / total)
        for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
            merged += tensor * (weight / total)
        return merged
