"""Label average: a classifier's rows averaged class by class, over the models that have the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge.errors import UsageError
from merge.methods.context import NOWHERE, Place

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LabelAverage:
    """Return row i = sum_m w_m theta_m[rows_m[i]] / sum_m w_m, over the models m that have class i.

    Attributes:
        rows: for each model, its row for each class of the result; -1 where it has none.
        weights: one per model; equal when None.
    """

    rows: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...] | None = None

    base: ClassVar[str] = "none"
    elementwise: ClassVar[bool] = False
    order_matters: ClassVar[bool] = True
    random: ClassVar[bool] = False
    statistics: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        for i, places in enumerate(zip(*self.rows, strict=True)):
            total = sum(w for w, place in zip(self._weights, places, strict=True) if place >= 0)
            if not total > 0:
                raise UsageError(
                    f"class {i} of the result has a total weight of {total:g} over the models that have it. Give them "
                    "positive weights."
                )

    @property
    def _weights(self) -> tuple[float, ...]:
        return self.weights or (1.0,) * len(self.rows)

    def check_count(self, models: int) -> None:
        """Stop when there are not rows for each model."""
        if len(self.rows) != models:
            raise UsageError(f"rows of {len(self.rows)} models for {models} models. Give rows for each.")

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, place: Place = NOWHERE) -> Tensor:
        import torch

        classes = len(self.rows[0])
        total = tensors[0].new_zeros((classes, *tensors[0].shape[1:]))
        weight = tensors[0].new_zeros((classes, *(1,) * (tensors[0].dim() - 1)))
        for w, rows, tensor in zip(self._weights, self.rows, tensors, strict=True):
            index = torch.tensor(rows, device=tensor.device)
            have = index >= 0
            total[have] += w * tensor[index[have]]
            weight[have] += w
        return total / weight
