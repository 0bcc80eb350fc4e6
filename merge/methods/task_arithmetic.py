"""Task arithmetic: the base plus the scaled sum of the task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method
from merge.methods.task_vectors import base_of, check_sum, deltas, fuse

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TaskArithmetic(Method):
    """Return theta_0 + scale * sum_m w_m (theta_m - theta_0).

    Attributes:
        weights: one per model; all 1 when None. A negative weight removes a task.
        normalize: divide by the sum of the weights.
        scale: lambda of the paper, which tunes it on held-out data (often 0.3 to 0.5).
    Source: Ilharco et al. 2023, "Editing models with task arithmetic", arXiv:2212.04089, section 2.
    """

    weights: tuple[float, ...] | None = None
    normalize: bool = False
    scale: float = 1.0

    name = "task_arithmetic"
    base = "required"
    elementwise = True
    takes_numpy = True
    spreads_nan = True

    def __post_init__(self) -> None:
        check_sum(self.name, self.weights, self.normalize, self.scale)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        weights = self.weights or (1.0,) * len(tensors)
        origin = base_of(self.name, base)
        return fuse(origin, deltas(tensors, origin), weights, self.normalize, self.scale)
