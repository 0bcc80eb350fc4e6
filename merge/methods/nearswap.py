"""Nearswap: the second model's entries where they are close to the first's, a bounded step towards them elsewhere."""

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
class Nearswap(Method):
    """Return a + w (b - a), entry by entry, with w = min(1, t / |b - a|).

    Computed as b clamped to within t of a, which is exact where b is close and has no division by 0 where b equals a.

    Attributes:
        t: largest change of an entry of the reference, in units of the weights; 0 gives the reference.
    Source: the model card of alchemonaut/QuartetAnemoi-70B-t0.0001, whose t is the default. mergekit divides by
    max(|b - a|, 1e-6), which differs only for t below 1e-6.
    """

    t: float = 1e-4

    name = "nearswap"
    elementwise = True
    order_matters = True

    def __post_init__(self) -> None:
        check_number(self.name, "t", self.t, 0)

    def check_models(self, models: int) -> None:
        """Stop unless there are two models."""
        if models != 2:
            raise UsageError(f"nearswap merges exactly two models, found {models}. Use --method linear for more.")

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        a, b = tensors
        return b.clamp(min=a - self.t, max=a + self.t)
