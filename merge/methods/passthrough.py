"""Passthrough: one model as it is, or scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge.errors import UsageError
from merge.methods.checks import check_number
from merge.methods.context import NOWHERE, Place

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Passthrough:
    """Return scale * theta, for one model: what a recipe of layers alone needs.

    Attributes:
        scale: 1 leaves the model as it is.
    """

    scale: float = 1.0

    base: ClassVar[str] = "none"
    elementwise: ClassVar[bool] = True
    order_matters: ClassVar[bool] = False
    random: ClassVar[bool] = False
    statistics: ClassVar[str | None] = None
    arrays: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("passthrough", "scale", self.scale)

    def check_count(self, models: int) -> None:
        """Stop unless there is one model."""
        if models != 1:
            raise UsageError(f"passthrough takes exactly one model, found {models}. Use --method linear for more.")

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, place: Place = NOWHERE) -> Tensor:
        return tensors[0] * self.scale
