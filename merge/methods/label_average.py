"""Label average: the rows of classifiers averaged class by class, over the models that have the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import UsageError
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LabelAverage(Method):
    """Return row i = sum_m w_m theta_m[rows_m[i]] / sum_m w_m, over the models m that have class i.

    Attributes:
        rows: for each model, its row for each class of the result; -1 for a class that it does not have.
        weights: one per model; equal when None.
    """

    rows: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...] | None = None

    name = "label_average"
    order_matters = True

    def __post_init__(self) -> None:
        for i, rows in enumerate(zip(*self.rows, strict=True)):
            total = sum(w for w, row in zip(self._weights, rows, strict=True) if row >= 0)
            if not total > 0:
                raise UsageError(
                    f"class {i} of the result has a total weight of {total:g} over the models that have it. Give them "
                    "positive weights."
                )

    @property
    def _weights(self) -> tuple[float, ...]:
        return self.weights or (1.0,) * len(self.rows)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        import torch

        classes = len(self.rows[0])
        total = tensors[0].new_zeros((classes, *tensors[0].shape[1:]))
        weight = tensors[0].new_zeros((classes, *(1,) * (tensors[0].dim() - 1)))
        for w, rows, tensor in zip(self._weights, self.rows, tensors, strict=True):
            index = torch.tensor(rows, device=tensor.device)
            present = index >= 0
            total[present] += w * tensor[index[present]]
            weight[present] += w
        return total / weight
