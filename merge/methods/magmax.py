"""MagMax: every entry takes the change of largest magnitude among the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge.methods.checks import check_number
from merge.methods.context import NOWHERE, Place
from merge.methods.task_vectors import base_of, deltas

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MagMax:
    """Return theta_0 + scale * d_j, j the model whose entry of the task vector has the largest magnitude.

    Two models that went equally far in opposite directions give the positive change, whatever their order.

    Attributes:
        scale: lambda of the paper.
    Source: Marczak et al. 2024, "MagMax", arXiv:2407.06322.
    """

    scale: float = 1.0

    base: ClassVar[str] = "required"
    elementwise: ClassVar[bool] = True
    order_matters: ClassVar[bool] = False
    random: ClassVar[bool] = False
    statistics: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        check_number("magmax", "scale", self.scale)

    def check_count(self, models: int) -> None:
        """Any number of models will do."""

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, place: Place = NOWHERE) -> Tensor:
        import torch

        origin = base_of("magmax", base)
        vectors = deltas(tensors, origin)
        highest = next(vectors)
        lowest = highest.clone()
        for delta in vectors:
            torch.maximum(highest, delta, out=highest)
            torch.minimum(lowest, delta, out=lowest)
        # The larger of the two magnitudes, with the sign of the side that has it: that of highest + lowest, + where it is 0.
        sign = highest + lowest
        farthest = torch.maximum(highest, lowest.neg_()).copysign_(sign)
        return torch.add(origin, farthest, alpha=self.scale)
