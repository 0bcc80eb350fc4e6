"""TIES: trim the task vectors, elect a sign for every entry, average the models with that sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merge.errors import UsageError
from merge.methods.checks import check_choice, check_flag, each
from merge.methods.context import EMPTY, TensorContext
from merge.methods.elected import elected_sum
from merge.methods.method import Method
from merge.methods.task_vectors import (
    base_of,
    check_densities,
    check_sum,
    deltas,
    fuse,
    keep_first,
    kept_count,
    norm_ratio,
    smallest_kept,
    trim,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Ties(Method):
    """Return theta_0 + scale * mean of the w_m t_m that agree in sign, t_m the largest entries of the task vector m.

    t_m keeps the max(int(density * n), 1) entries of largest magnitude out of n, and all that tie with the smallest of
    them. Each entry elects the sign of sum_m w_m t_m, + where that is 0. (The authors' code gives such entries the sign
    that most other entries of the model elected; an exact 0 hardly occurs unless two models mirror each other.)
    The mean is over the models whose entry was kept and has the elected sign.
    The authors' code also keeps one entry more of each model: every entry at least as large as the one below the threshold.

    Attributes:
        density: fraction of each task vector that is kept, for all models or one per model; the paper keeps 20%.
        weights: one per model; all 1 when None.
        normalize: average the agreeing models (the paper's disjoint mean) instead of summing them.
        scale: lambda of the paper.
        trim: rank entries over the whole "model", as in the paper, or within each "tensor", as in mergekit.
        exact_count: with trim "tensor", keep exactly max(int(density * n), 1) entries: of those that tie, the ones that
            torch's sort puts first, as in mergekit.
        rescale: with trim "tensor", "l1" scales t_m to the L1 norm of the tensor's task vector (mergekit's rescale); "none" as in
            the paper.
    Source: Yadav et al. 2023, "TIES-Merging", arXiv:2306.01708, algorithm 1.
    """

    density: float | tuple[float, ...] = 0.2
    weights: tuple[float, ...] | None = None
    normalize: bool = True
    scale: float = 1.0
    trim: str = "model"
    exact_count: bool = False
    rescale: str = "none"

    name = "ties"
    base = "required"

    @property
    def elementwise(self) -> bool:
        """Whether each entry of the result depends on that entry alone: it does if thresholds are given for the whole model."""
        return self.trim == "model"

    @property
    def takes_numpy(self) -> bool:
        return self.elementwise

    def __post_init__(self) -> None:
        check_densities(self.name, self.density)
        check_sum(self.name, self.weights, self.normalize, self.scale, elect=True)
        check_choice(self.name, "trim", self.trim, ("model", "tensor"))
        check_flag(self.name, "exact_count", self.exact_count)
        check_choice(self.name, "rescale", self.rescale, ("none", "l1"))
        if (self.exact_count or self.rescale != "none") and self.trim != "tensor":
            raise UsageError("ties: exact_count and rescale concern the entries of a tensor. Set trim=tensor too.")

    @property
    def as_stored(self) -> bool:
        """Whether matrices are taken as stored: which entries of a tie come first depends on it."""
        return self.exact_count

    def kept_fractions(self, models: int) -> tuple[float, ...] | None:
        """Return the densities if entries are ranked over the whole model and some are dropped, else None."""
        densities = each(self.density, models)
        return densities if self.trim == "model" and min(densities) < 1 else None

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        origin = base_of(self.name, base)
        densities = each(self.density, len(tensors))
        weights = self.weights or (1.0,) * len(tensors)
        if self.elementwise and (context.thresholds or set(densities) <= {0, 1}) and _in_memory(origin):
            return self._in_numpy(tensors, origin, densities, weights, context)
        trimmed = []
        for k, delta in enumerate(deltas(tensors, origin)):
            kept = self._trimmed(k, delta, densities[k], context)
            trimmed.append(kept * norm_ratio(delta, kept) if self.rescale == "l1" else kept)
        return fuse(origin, trimmed, weights, self.normalize, self.scale, elect=True)

    def _in_numpy(
        self,
        tensors: Sequence[Tensor],
        base: Tensor,
        densities: Sequence[float],
        weights: Sequence[float],
        context: TensorContext,
    ) -> Tensor:
        """Return the result for thresholds that are known, of torch tensors in main memory or numpy arrays."""
        import numpy as np

        used = [k for k, density in enumerate(densities) if density > 0]
        if not used:
            return base + 0.0
        arrays = [np.asarray(tensors[k]).reshape(-1) for k in used]
        limits = [0.0 if densities[k] == 1 else context.thresholds[k] for k in used]
        origin, used_weights = np.asarray(base).reshape(-1), [weights[k] for k in used]
        merged: Any = elected_sum(origin, arrays, limits, used_weights, self.normalize, self.scale).reshape(base.shape)
        if isinstance(base, np.ndarray):
            return merged
        import torch

        return torch.from_numpy(merged)

    def _trimmed(self, k: int, delta: Tensor, density: float, context: TensorContext) -> Tensor:
        if density in (0, 1):
            return delta if density == 1 else delta * 0
        if self.exact_count:
            return keep_first(delta, kept_count(density, delta.numel()))
        ranked = self.trim == "model" and context.thresholds
        return trim(delta, context.thresholds[k] if ranked else smallest_kept(delta, density))


def _in_memory(tensor: Any) -> bool:
    """Return whether numpy can read a tensor: on the CPU, or an array already."""
    return str(getattr(tensor, "device", "cpu")) == "cpu"
