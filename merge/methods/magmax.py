"""MagMax: every entry gets the change of largest magnitude among the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.methods.checks import check_number
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method
from merge.methods.task_vectors import base_of, deltas

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MagMax(Method):
    """Return theta_0 + scale * d_j, j the model whose entry of the task vector has the largest magnitude.

    Where two models changed equally in opposite directions, the positive change is taken, whatever the order of models.

    Attributes:
        scale: lambda of the paper.
    Source: Marczak et al. 2024, "MagMax", arXiv:2407.06322.
    """

    scale: float = 1.0

    name = "magmax"
    base = "required"
    elementwise = True

    def __post_init__(self) -> None:
        check_number(self.name, "scale", self.scale)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        import torch

        origin = base_of(self.name, base)
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
