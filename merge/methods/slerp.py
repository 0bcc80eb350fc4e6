"""Slerp: spherical interpolation of two models, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import UsageError
from merge.methods.checks import check_choice, check_number
from merge.methods.context import EMPTY, TensorContext
from merge.methods.linear import Linear
from merge.methods.method import Method
from merge.methods.sphere import SMALL_ANGLE, inner_products

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Slerp(Method):
    """Return (sin((1-lam) w) a + sin(lam w) b) / sin(w), w the angle between a and b as flat vectors.

    Where the angle is not defined or close to 0 or pi (a zero tensor, (anti)parallel tensors) returns (1-lam) a + lam b.

    Attributes:
        lam: 0 is the reference, 1 the other model.
        line_above: cosines above it, in absolute value, count as (anti)parallel. mergekit has 0.9995, which most tensors of
            two fine-tunes of one model exceed; the line is shorter than the arc by up to 0.013% there.
        zeros: a tensor of zeros counts as "parallel" to any other, or as "orthogonal" (mergekit).
    Source: Shoemake 1985, "Animating rotation with quaternion curves", section 3.3.
    """

    lam: float = 0.5
    line_above: float = 1.0
    zeros: str = "parallel"

    name = "slerp"
    order_matters = True
    takes_numpy = True
    as_stored = True
    two_passes = True

    def __post_init__(self) -> None:
        check_number(self.name, "lam", self.lam, 0, 1)
        check_number(self.name, "line_above", self.line_above, 0, 1)
        check_choice(self.name, "zeros", self.zeros, ("parallel", "orthogonal"))

    def check_models(self, models: int) -> None:
        """Stop unless there are two models."""
        if models != 2:
            raise UsageError(f"slerp merges exactly two models, found {models}. Use --method linear for more.")

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        return self.of_pieces([tensors])(tensors)

    def of_pieces(self, pieces: Iterable[Sequence[Tensor]]) -> Linear:
        """Return the weighted sum that this is for the tensors of these flat pieces."""
        return Linear(self._shares(*inner_products(pieces)), normalize=False)

    def _shares(self, aa: float, ab: float, bb: float) -> tuple[float, float]:
        """Return the two coefficients, from the products of the vectors with themselves and each other."""
        if aa * bb > 0:
            cosine = min(max(ab / (math.sqrt(aa) * math.sqrt(bb)), -1.0), 1.0)
        else:  # a zero tensor has no angle
            cosine = 1.0 if self.zeros == "parallel" else 0.0
        angle = math.acos(math.copysign(1.0, cosine) if abs(cosine) > self.line_above else cosine)
        t = float(self.lam)
        if angle < SMALL_ANGLE or math.pi - angle < SMALL_ANGLE:
            return 1 - t, t
        return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
