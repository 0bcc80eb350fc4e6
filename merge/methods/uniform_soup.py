"""Uniform soup: the plain average of all models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.methods.context import EMPTY, TensorContext
from merge.methods.linear import Linear
from merge.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class UniformSoup(Method):
    """Return (1/n) sum_m theta_m: linear with equal weights, under the name of the paper.

    Source: Wortsman et al. 2022, arXiv:2203.05482, section 2.
    """

    name = "uniform_soup"
    elementwise = True
    takes_numpy = True

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        return Linear()(tensors)
