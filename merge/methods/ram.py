"""RAM: an entry changed by one model keeps its change, an entry changed by several gets their average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.methods.checks import check_number
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Ram(Method):
    """Return base + sum_m d_m / k, entry by entry, over the k models whose d_m = theta_m - base exceeds epsilon in size.

    An entry that one model changed keeps its full change, an entry that several changed gets their average, and an entry
    that none changed keeps the base's value.

    Attributes:
        epsilon: size that a change must exceed to count, in units of the weights.
    Source: Yuan et al. 2026, arXiv:2601.13572 (reinforced agent merging); epsilon as in mergekit 0.1.5.
    """

    epsilon: float = 1e-5

    name = "ram"
    base = "required"
    elementwise = True

    def __post_init__(self) -> None:
        check_number(self.name, "epsilon", self.epsilon, 0)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        import torch

        assert base is not None, "the engine reads the base of a method that requires one"
        summed, count = torch.zeros_like(base), torch.zeros_like(base)
        for tensor in tensors:
            change = tensor - base
            counts = (change.abs() > self.epsilon).to(base.dtype)
            summed.addcmul_(change, counts)
            count.add_(counts)
        return summed.div_(count.clamp_(min=1)).add_(base)
