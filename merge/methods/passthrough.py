"""Passthrough: a copy of one model, optionally scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import UsageError
from merge.methods.checks import check_number
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Passthrough(Method):
    """Return scale * theta, for exactly one model; used by recipes that only select layers.

    Attributes:
        scale: 1 copies the model unchanged.
    """

    scale: float = 1.0

    name = "passthrough"
    elementwise = True
    takes_numpy = True

    def __post_init__(self) -> None:
        check_number(self.name, "scale", self.scale)

    def check_models(self, models: int) -> None:
        """Stop unless there is one model."""
        if models != 1:
            raise UsageError(f"passthrough takes exactly one model, found {models}. Use --method linear for more.")

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        return tensors[0] * self.scale
