"""Cocktail: an average that gives models with a lower loss on a few examples more weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import UsageError
from merge.methods.checks import check_number, check_weights
from merge.methods.context import EMPTY, TensorContext
from merge.methods.linear import Linear
from merge.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Cocktail(Method):
    """Return sum_m w_m theta_m with w = softmax(-loss / temperature), the loss of each model on the examples.

    Losses are measured once, before tensors are merged, and set `weights`; if weights are given, nothing is measured. The
    examples come from the recipe's `statistics` entry.

    Attributes:
        temperature: a lower temperature gives the best model more weight; 5 in the authors' code.
        weights: one per model; computed from the losses when None.
    Source: Xiao et al. 2023, arXiv:2311.13534, section 3.
    """

    temperature: float = 5.0
    weights: tuple[float, ...] | None = None

    name = "cocktail"
    elementwise = True
    takes_numpy = True

    def __post_init__(self) -> None:
        check_number(self.name, "temperature", self.temperature, low=0.0, above=True)
        check_weights(self.name, self.weights, normalize=True)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        if self.weights is None:
            raise UsageError(
                "cocktail: the losses of the models have not been measured. Give weights, or use merge-models."
            )
        return Linear(self.weights)(tensors)
