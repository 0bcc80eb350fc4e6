"""Fisher: the average in which every parameter counts as much as the model's predictions depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import MismatchError
from merge.methods.checks import check_each, check_number, check_weights
from merge.methods.context import EMPTY, TensorContext
from merge.methods.linear import Linear
from merge.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Fisher(Method):
    """Return sum_m w_m F_m theta_m / sum_m w_m F_m, element by element, with F_m the diagonal Fisher information.

    F_m is raised to the floor. Where F_m is below the floor for every model, or was not measured, the result is exactly the
    weighted average. F_m is divided by its mean over the whole model, because a model that is certain of its predictions
    has small F_m everywhere; the authors' code divides by the norm. Weights proportional to these means (in the statistics
    files) undo the division.
    F_m is measured on text of model m's own task: --statistics a=A.jsonl --statistics b=B.jsonl, or the files that merge-models
    statistics wrote of these models.

    Attributes:
        weights: one per model, not negative; equal when None.
        floor: smallest Fisher information, in units of the model's mean; the authors' code has 1e-6, and by default
            applies it to the first model only.
    Source: Matena & Raffel 2022, arXiv:2111.09832, section 3.
    """

    weights: tuple[float, ...] | None = None
    floor: float = 1e-6

    name = "fisher"
    elementwise = True
    statistics = "fisher"

    def __post_init__(self) -> None:
        check_weights(self.name, self.weights, normalize=True)
        if self.weights is not None:
            check_each(self.name, "weights", self.weights, 0.0, float("inf"))
        check_number(self.name, "floor", self.floor, low=0.0)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        import torch

        average = Linear(self.weights)(tensors)
        if not context.statistics:
            return average
        check_statistics(self.name, tensors, context)
        weights = self.weights or (1.0,) * len(tensors)
        used = [f for f, weight in zip(context.statistics, weights, strict=True) if weight > 0]
        unknown = torch.stack([f <= self.floor for f in used]).all(0)
        shares = [
            w * f.to(average.dtype).clamp_min(self.floor) for w, f in zip(weights, context.statistics, strict=True)
        ]
        # Added one by one: torch.sum rounds differently for pieces of another length.
        total = torch.where(unknown, 1.0, sum(shares[1:], shares[0]))
        # Computed as steps from the first model, so that merging equal models returns them exactly.
        merged = tensors[0].clone()
        for share, tensor in zip(shares[1:], tensors[1:], strict=True):
            merged += share / total * (tensor - tensors[0])
        return torch.where(unknown, average, merged)


def check_statistics(method: str, tensors: Sequence[Tensor], context: TensorContext) -> None:
    """Stop unless there is one statistic per model, each of its tensor's shape."""
    shapes = [tuple(statistic.shape) for statistic in context.statistics]
    expected = [tuple(tensor.shape) for tensor in tensors]
    if shapes != expected:
        raise MismatchError(
            f"{method}: {context.name} has statistics of shapes {shapes} for tensors of shapes {expected}. Measure them again."
        )
