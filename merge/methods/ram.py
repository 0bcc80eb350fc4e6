"""RAM: what one model alone changed is kept whole, what several changed is averaged over those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge.methods.checks import check_number
from merge.methods.context import NOWHERE, Place

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Ram:
    """Return base + sum_m d_m / k, entry by entry, over the k models whose d_m = theta_m - base exceeds epsilon in size.

    An entry that one model changed keeps its whole change, one that several changed gets their average, and one that none
    changed stays the base's.

    Attributes:
        epsilon: the size a change must exceed to count, in the units of the weights.
    Source: Yuan et al. 2026, arXiv:2601.13572 (reinforced agent merging); epsilon as in mergekit 0.1.5.
    """

    epsilon: float = 1e-5

    base: ClassVar[str] = "required"
    elementwise: ClassVar[bool] = True
    order_matters: ClassVar[bool] = False
    random: ClassVar[bool] = False
    statistics: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        check_number("ram", "epsilon", self.epsilon, 0)

    def check_count(self, models: int) -> None:
        """Accept any number of models."""

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, place: Place = NOWHERE) -> Tensor:
        import torch

        assert base is not None, "the engine reads the base of a method that requires one"
        summed, count = torch.zeros_like(base), torch.zeros_like(base)
        for tensor in tensors:
            change = tensor - base
            counts = (change.abs() > self.epsilon).to(base.dtype)
            summed.addcmul_(change, counts)
            count.add_(counts)
        return summed.div_(count.clamp_(min=1)).add_(base)
