"""Cocktail: the average in which models weigh more, the lower their loss on a few examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge.errors import UsageError
from merge.methods.checks import check_length, check_number, check_weights
from merge.methods.context import NOWHERE, Place
from merge.methods.linear import Linear

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Cocktail:
    """Return sum_m w_m theta_m with w = softmax(-loss / temperature), the loss of each model on the examples.

    Losses are measured once, before tensors are merged, and fill `weights`; where they are given, nothing is measured. The
    examples are the recipe's `statistics`.

    Attributes:
        temperature: the lower, the more the best model counts; 5 in the authors' code.
        weights: one per model; from the losses when None.
    Source: Xiao et al. 2023, arXiv:2311.13534, section 3.
    """

    temperature: float = 5.0
    weights: tuple[float, ...] | None = None

    base: ClassVar[str] = "none"
    elementwise: ClassVar[bool] = True
    order_matters: ClassVar[bool] = False
    random: ClassVar[bool] = False
    statistics: ClassVar[str | None] = None
    arrays: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("cocktail", "temperature", self.temperature, low=0.0, above=True)
        check_weights("cocktail", self.weights, normalize=True)

    def check_count(self, models: int) -> None:
        """Stop when the weights are not one per model."""
        check_length("cocktail", "weights", self.weights, models)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, place: Place = NOWHERE) -> Tensor:
        if self.weights is None:
            raise UsageError("cocktail: the models' losses have not been measured. Give weights, or use run().")
        return Linear(self.weights)(tensors)
