"""RAM+ within a tensor: RAM with each model's unique changes amplified by how many of its changes are shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.methods.checks import check_number
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RamPlusTl(Method):
    """Return base plus RAM's change, where entries that only model m changed are scaled by 1 + r min(rho_m, alpha).

    An entry of d_m = theta_m - base counts if its size exceeds epsilon; it is shared if the entry of another model counts
    too, else unique. rho_m = shared_m / unique_m counts both in this tensor (the paper: in the whole model). A model without
    unique entries is not scaled.

    Attributes:
        r: strength of the amplification by rho.
        alpha: upper bound of rho.
        epsilon: size that a change must exceed to count, in units of the weights.
    Source: Yuan et al. 2026, arXiv:2601.13572 (RAM+); mergekit 0.1.5, ramplus_tl, for the defaults and the scope.
    """

    r: float = 0.1
    alpha: float = 0.2
    epsilon: float = 1e-5

    name = "ramplus_tl"
    base = "required"

    def __post_init__(self) -> None:
        check_number(self.name, "r", self.r, 0)
        check_number(self.name, "alpha", self.alpha, 0)
        check_number(self.name, "epsilon", self.epsilon, 0)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        import torch

        assert base is not None, "the engine reads the base of a method that requires one"
        count = torch.zeros_like(base)
        for tensor in tensors:
            count.add_(((tensor - base).abs_() > self.epsilon).to(base.dtype))
        alone, share = count == 1, count.clamp_(min=1).reciprocal_()
        merged = base.clone()
        for tensor in tensors:
            change = tensor - base
            counts = change.abs() > self.epsilon
            unique, changed = int((counts & alone).count_nonzero()), int(counts.count_nonzero())
            scale = 1 + self.r * min((changed - unique) / unique, self.alpha) if unique else 1.0
            weight = torch.where(alone, scale, share)
            merged.addcmul_(change, weight.masked_fill_(~counts, 0))
        return merged
