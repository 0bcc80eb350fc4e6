"""Nearswap: the other model's entries where the two are near, a bounded step towards them elsewhere."""

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

    That is b held to within t of a, which is how it is computed: exact where b is near, no quotient where b equals a.

    Attributes:
        t: how far an entry of the reference may move, in the units of the weights; 0 gives the reference.
    Source: the model card of alchemonaut/QuartetAnemoi-70B-t0.0001, whose t is the default. mergekit divides by
    max(|b - a|, 1e-6), which differs for t below 1e-6 alone.
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
