"""Uniform soup: the plain average of all models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge.methods.context import NOWHERE, Place
from merge.methods.linear import Linear

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class UniformSoup:
    """Return (1/n) sum_m theta_m: linear with equal weights, under the name the paper gives it.

    Source: Wortsman et al. 2022, arXiv:2203.05482, section 2.
    """

    base: ClassVar[str] = "none"
    elementwise: ClassVar[bool] = True
    order_matters: ClassVar[bool] = False
    random: ClassVar[bool] = False
    statistics: ClassVar[str | None] = None
    arrays: ClassVar[bool] = True

    def check_count(self, models: int) -> None:
        """Accept any number of models."""

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, place: Place = NOWHERE) -> Tensor:
        return Linear()(tensors)
