"""Nearswap: the other model's entries where the two are near, a bounded step towards them elsewhere."""

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
class Nearswap:
    """Return a + w (b - a), entry by entry, with w = min(1, t / |b - a|).

    That is b held to within t of a, which is how it is computed: exact where b is near, no quotient where b equals a.

    Attributes:
        t: how far an entry of the reference may move, in the units of the weights; 0 gives the reference.
    Source: the model card of alchemonaut/QuartetAnemoi-70B-t0.0001, whose t is the default. mergekit divides by
    max(|b - a|, 1e-6), which differs for t below 1e-6 alone.
    """

    t: float = 1e-4

    base: ClassVar[str] = "none"
    elementwise: ClassVar[bool] = True
    order_matters: ClassVar[bool] = True
    random: ClassVar[bool] = False
    statistics: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        check_number("nearswap", "t", self.t, 0)

    def check_count(self, models: int) -> None:
        """Stop unless there are two models."""
        if models != 2:
            raise UsageError(f"nearswap merges exactly two models, found {models}. Use --method linear for more.")

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, place: Place = NOWHERE) -> Tensor:
        a, b = tensors
        return b.clamp(min=a - self.t, max=a + self.t)
