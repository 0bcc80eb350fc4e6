"""Consensus merging: task arithmetic on the entries that enough tasks use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import UsageError
from merge.methods.checks import check_each, check_number, each
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method
from merge.methods.task_vectors import base_of, check_sum, deltas

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Consensus(Method):
    """Return theta_0 + scale * c * d, d = sum_m w_m d_m the multi-task vector, c the mask of entries that k tasks use.

    Task m uses an entry if its TALL mask is set: |d_m| >= lambda_m |d - d_m|, which compares |theta_m - theta_0| with
    |theta_multi - theta_m|. The paper calls entries that no task uses catastrophic, those that one task uses selfish.

    Attributes:
        k: how many tasks must use an entry; 2 removes catastrophic and selfish entries, 1 only catastrophic ones.
        tall_lambda: lambda of the TALL masks, for all models or one per model; the paper selects it from 0.2 to 0.6.
        weights: one per model; all 1 when None.
        normalize: divide by the sum of the weights, before the masks are made.
        scale: alpha of the paper, which tunes it; it does not affect the masks.
    Source: Wang et al. 2024, "Localizing task information for improved model merging and compression", arXiv:2405.07813.
    """

    k: int = 2
    tall_lambda: float | tuple[float, ...] = 0.4
    weights: tuple[float, ...] | None = None
    normalize: bool = False
    scale: float = 1.0

    name = "consensus"
    base = "required"
    elementwise = True

    def __post_init__(self) -> None:
        check_number(self.name, "k", self.k, 1)
        if not isinstance(self.k, int):
            raise UsageError(f"consensus: k counts tasks and must be a whole number, found {self.k!r}.")
        check_each(self.name, "tall_lambda", self.tall_lambda, 0, math.inf)
        check_sum(self.name, self.weights, self.normalize, self.scale)

    def check_models(self, models: int) -> None:
        """Stop when k asks for more tasks than there are models."""
        if self.k > models:
            raise UsageError(
                f"consensus: no entry can be used by k={self.k} of {models} models. Set k to {models} or less."
            )

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        import torch

        origin, models = base_of(self.name, base), len(tensors)
        weights = self.weights or (1.0,) * models
        total = math.fsum(weights) if self.normalize else 1.0
        vectors = list(deltas(tensors, origin))
        multi = vectors[0] * (weights[0] / total)
        for delta, weight in zip(vectors[1:], weights[1:], strict=True):
            multi.add_(delta, alpha=weight / total)
        users = torch.zeros_like(origin)
        for delta, lam in zip(vectors, each(self.tall_lambda, models), strict=True):
            users.add_(delta.abs() >= (multi - delta).abs_().mul_(lam))
        return torch.addcmul(origin, multi, users.ge_(self.k), value=self.scale)
