"""Task arithmetic: the base plus the scaled sum of the task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge.methods.checks import check_length
from merge.methods.context import NOWHERE, Place
from merge.methods.task_vectors import base_of, check_sum, deltas, fuse

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TaskArithmetic:
    """Return theta_0 + scale * sum_m w_m (theta_m - theta_0).

    Attributes:
        weights: one per model; all 1 when None. A negative one forgets a task.
        normalize: divide by the sum of the weights.
        scale: lambda of the paper, which tunes it on held-out data (0.3 to 0.5 served its authors for many tasks).
    Source: Ilharco et al. 2023, "Editing models with task arithmetic", arXiv:2212.04089, section 2.
    """

    weights: tuple[float, ...] | None = None
    normalize: bool = False
    scale: float = 1.0

    base: ClassVar[str] = "required"
    elementwise: ClassVar[bool] = True
    order_matters: ClassVar[bool] = False
    random: ClassVar[bool] = False
    statistics: ClassVar[str | None] = None
    arrays: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_sum("task_arithmetic", self.weights, self.normalize, self.scale)

    def check_count(self, models: int) -> None:
        """Stop when the weights are not one per model."""
        check_length("task_arithmetic", "weights", self.weights, models)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, place: Place = NOWHERE) -> Tensor:
        weights = self.weights or (1.0,) * len(tensors)
        origin = base_of("task_arithmetic", base)
        return fuse(origin, deltas(tensors, origin), weights, self.normalize, self.scale)
