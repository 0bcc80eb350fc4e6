"""DELLA: small entries of the task vectors are dropped more often than large ones, then signs are elected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import UsageError
from merge.methods.checks import check_choice, check_each, check_flag, each
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method
from merge.methods.task_vectors import (
    RESCALES,
    base_of,
    check_densities,
    check_sum,
    deltas,
    drop,
    fuse,
    generators_of,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Della(Method):
    """Return theta_0 + scale * mean of the w_m t_m that agree in sign, t_m the task vector m after MAGPRUNE.

    MAGPRUNE ranks the entries of each row by magnitude, r = 0 for the smallest to n - 1, keeps an entry with probability
    p = density - epsilon + 2 epsilon r / (n - 1), and divides kept entries by p. A row holds the entries with one first
    index; a tensor with fewer than two axes is one row; in a row with one entry p = density. Of equal entries the earlier
    one ranks lower.

    Attributes:
        density: mean probability that an entry is kept, for all models or one per model; 1 keeps everything. The paper
            tunes it and gives no default; 0.5 is the middle of its range.
        epsilon: half the range of the probabilities, for all models or one per model; 0 makes it DARE. The default is
            that of the authors' code in mergekit.
        weights: one per model; all 1 when None.
        normalize: average instead of summing: over the agreeing models, or by the sum of the weights without `elect`.
        scale: lambda of the paper.
        rescale: kept entries are divided by their "probability" of being kept (the paper: the expected task vector is
            unchanged), scaled to keep the "l1" norm of the tensor's task vector (mergekit), or left unscaled ("none").
        elect: vote on signs, as TIES does; without it the task vectors are added up (mergekit's della_linear).
        as_stored: rows are those of the file, not the outputs of a layer: the two differ for GPT-2's Conv1D (mergekit).
    Source: Deep et al. 2024, "DELLA-Merging", arXiv:2406.11617; the authors' code for the range of p.
    """

    density: float | tuple[float, ...] = 0.5
    epsilon: float | tuple[float, ...] = 0.15
    weights: tuple[float, ...] | None = None
    normalize: bool = True
    scale: float = 1.0
    rescale: str = "probability"
    elect: bool = True
    as_stored: bool = False

    name = "della"
    base = "required"
    random = True

    def __post_init__(self) -> None:
        check_flag(self.name, "elect", self.elect)
        check_flag(self.name, "as_stored", self.as_stored)
        check_densities(self.name, self.density)
        check_each(self.name, "epsilon", self.epsilon, 0, 0.5)
        check_sum(self.name, self.weights, self.normalize, self.scale, self.elect)
        check_choice(self.name, "rescale", self.rescale, RESCALES)

    def check_models(self, models: int) -> None:
        """Stop when a probability would leave the range above 0 to 1."""
        for density, epsilon in zip(each(self.density, models), each(self.epsilon, models), strict=True):
            if 0 < density < 1 and not epsilon < density <= 1 - epsilon:
                raise UsageError(
                    f"della: probabilities run from density - epsilon to density + epsilon and must stay above 0 and up "
                    f"to 1, found density {density:g} and epsilon {epsilon:g}. Choose a smaller epsilon."
                )

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        origin, models = base_of(self.name, base), len(tensors)
        parts = zip(
            deltas(tensors, origin),
            each(self.density, models),
            each(self.epsilon, models),
            generators_of(self.name, context, models),
            strict=True,
        )
        kept = (
            drop(
                delta,
                keep_probabilities(delta, density, epsilon) if 0 < density < 1 else density,
                self.rescale,
                generator,
            )
            for delta, density, epsilon, generator in parts
        )
        weights = self.weights or (1.0,) * models
        return fuse(origin, kept, weights, self.normalize, self.scale, self.elect)


def keep_probabilities(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """Return the probability of keeping each entry: density - epsilon for the smallest of a row, + epsilon for the largest."""
    import torch

    rows = delta.flatten(1) if delta.dim() > 1 else delta.reshape(1, delta.numel())
    width = rows.shape[1]
    if width < 2:
        return torch.full_like(delta, density)
    order = rows.abs().argsort(dim=1, stable=True)
    by_rank = torch.arange(width, dtype=delta.dtype).mul_(2 * epsilon / (width - 1)).add_(density - epsilon)
    return torch.empty_like(rows).scatter_(1, order, by_rank.expand_as(rows)).reshape(delta.shape)
