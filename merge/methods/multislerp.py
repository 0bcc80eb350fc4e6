"""Multislerp: the mean direction of any number of models, at their mean length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.methods.checks import check_flag, check_weights
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method
from merge.methods.sphere import NO_DIRECTION, as_rows, combine, cosines, gram

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Multislerp(Method):
    """Return (sum_m w_m |x_m|) mu, with mu the direction of sum_m w_m u_m and u_m = x_m / |x_m|.

    The x_m are the tensors, or the task vectors if there is a base, which is then added. The source describes a barycentre
    in the tangent space at mu: exp_mu(sum_m w_m (u_m - (u_m . mu) mu)). That sum is 0 by the choice of mu, so the
    barycentre is mu itself and no exponential is needed. `karcher` is the mean by exact angles.
    Where the u_m cancel there is no direction, and the result is the weighted average, as for slerp.

    Attributes:
        weights: one per model; equal when None.
        normalize: divide by the sum of the weights.
    Source: C. Goddard, "Multi-SLERP", goddard.blog/posts/multislerp-wow-what-a-cool-idea; mergekit's normalize_weights.
    """

    weights: tuple[float, ...] | None = None
    normalize: bool = True

    name = "multislerp"
    base = "optional"

    def __post_init__(self) -> None:
        check_flag(self.name, "normalize", self.normalize)
        check_weights(self.name, self.weights, self.normalize, can_turn_off=True)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        import torch

        chosen = self.weights or (1.0,) * len(tensors)
        total = math.fsum(chosen) if self.normalize else 1.0
        weights = torch.tensor([weight / total for weight in chosen], dtype=torch.float64)
        rows = [as_rows(tensor, whole=True) for tensor in tensors]
        origin = None if base is None else as_rows(base, whole=True)
        products = gram(rows, origin).cpu()
        lengths, cosine = products[..., 0].diagonal().sqrt(), cosines(products)[..., 0]
        scale = float((weights @ cosine @ weights).clamp(min=0).sqrt())
        if scale > NO_DIRECTION:
            inverse = torch.where(lengths > 0, 1 / lengths.where(lengths > 0, 1), 0)
            weights = weights * inverse * (float(weights @ lengths) / scale)
        return combine(rows, weights.tolist(), origin).reshape(tensors[0].shape)
