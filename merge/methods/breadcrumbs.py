"""Model breadcrumbs: task vectors without their largest and smallest entries, added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.methods.checks import check_choice, check_each, check_flag, each
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method
from merge.methods.task_vectors import (
    base_of,
    check_densities,
    check_sum,
    deltas,
    fuse,
    keep_first,
    kept_band,
    norm_ratio,
    trim,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Breadcrumbs(Method):
    """Return theta_0 + scale * sum_m w_m t_m, t_m the task vector m without its largest and smallest entries.

    Per tensor of n entries, the int(gamma * n) of largest magnitude are set to 0 (outliers), then the smallest until
    max(int(density * n), 1) are left; entries equal to a kept one are kept. Fewer outliers are dropped where too few entries
    would be left; at density 1 none are.
    The authors' code ranks each row by itself (entries along the last axis), keeps int(density * row) of a row and zeroes
    exactly that many; mergekit ranks the tensor, as this does.

    Attributes:
        density: fraction kept, for all models or one per model. The defaults of density and gamma are near the start of
            the authors' search (15% kept, the largest 0.6% dropped).
        gamma: fraction of outliers dropped, for all models or one per model.
        weights: one per model; all 1 when None.
        normalize: divide by the sum of the weights; with `elect`, average the agreeing models.
        scale: alpha of the paper, which tunes it.
        elect: vote on signs, as TIES does (mergekit's breadcrumbs_ties).
        exact_count: keep exactly int(density * n) entries: of those that tie, the ones that torch's sort puts on that side,
            as in mergekit; none in a tensor of fewer than 1 / density entries.
        rescale: "l1" scales t_m to the L1 norm of the tensor's task vector (mergekit's rescale); "none" as in the paper.
    Source: Davari and Belilovsky 2024, "Model Breadcrumbs", arXiv:2312.06795, section 3.
    """

    density: float | tuple[float, ...] = 0.15
    gamma: float | tuple[float, ...] = 0.01
    weights: tuple[float, ...] | None = None
    normalize: bool = False
    scale: float = 1.0
    elect: bool = False
    exact_count: bool = False
    rescale: str = "none"

    name = "breadcrumbs"
    base = "required"

    def __post_init__(self) -> None:
        check_flag(self.name, "elect", self.elect)
        check_flag(self.name, "exact_count", self.exact_count)
        check_choice(self.name, "rescale", self.rescale, ("none", "l1"))
        check_densities(self.name, self.density)
        check_each(self.name, "gamma", self.gamma, 0, 1)
        check_sum(self.name, self.weights, self.normalize, self.scale, self.elect)

    @property
    def as_stored(self) -> bool:
        """Whether matrices are taken as stored: which entries of a tie come first depends on it."""
        return self.exact_count

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        origin, models = base_of(self.name, base), len(tensors)
        settings = zip(deltas(tensors, origin), each(self.density, models), each(self.gamma, models), strict=True)
        masked = (self._masked(delta, density, gamma) for delta, density, gamma in settings)
        weights = self.weights or (1.0,) * models
        return fuse(origin, masked, weights, self.normalize, self.scale, self.elect)

    def _masked(self, delta: Tensor, density: float, gamma: float) -> Tensor:
        kept = mask_band(delta, density, gamma, self.exact_count)
        return kept * norm_ratio(delta, kept) if self.rescale == "l1" else kept


def mask_band(delta: Tensor, density: float, gamma: float, exact_count: bool = False) -> Tensor:
    """Return `delta` with its largest and smallest entries set to 0, or `delta` itself at density 1."""
    if density in (0, 1):
        return delta if density == 1 else delta * 0
    if exact_count:
        return keep_first(delta, int(density * delta.numel()), int(gamma * delta.numel()), upwards=True)
    smallest, largest = kept_band(delta, density, gamma)
    return trim(delta, smallest).masked_fill_(delta.abs() > largest, 0)
