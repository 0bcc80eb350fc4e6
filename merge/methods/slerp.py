"""Slerp: spherical interpolation of two models, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import UsageError
from merge.methods.checks import check_number
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method
from merge.methods.sphere import arc, as_rows, combine, cosines, gram

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Slerp(Method):
    """Return (sin((1-lam) w) a + sin(lam w) b) / sin(w), w the angle between a and b as flat vectors.

    Where the angle is not defined or close to 0 or pi (a zero tensor, (anti)parallel tensors) returns (1-lam) a + lam b.

    Attributes:
        lam: 0 is the reference, 1 the other model.
    Source: Shoemake 1985, "Animating rotation with quaternion curves", section 3.3.
    """

    lam: float = 0.5

    name = "slerp"
    order_matters = True

    def __post_init__(self) -> None:
        check_number(self.name, "lam", self.lam, 0, 1)

    def check_models(self, models: int) -> None:
        """Stop unless there are two models."""
        if models != 2:
            raise UsageError(f"slerp merges exactly two models, found {models}. Use --method linear for more.")

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        import torch

        vectors = [as_rows(tensor, whole=True) for tensor in tensors]
        products = gram(vectors)
        cosine = cosines(products)[0, 1]
        # A zero tensor counts as parallel: it has no angle.
        cosine = torch.where(products.diagonal().T.prod(0) > 0, cosine, 1)
        shares = arc(cosine, float(self.lam))
        return combine(vectors, shares).reshape(tensors[0].shape)
