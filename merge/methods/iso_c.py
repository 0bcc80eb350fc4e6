"""Iso-C: the sum of the task matrices with all singular values replaced by their mean."""

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
class IsoC(Method):
    """Return base + scale s U V^T, where U S V^T is the SVD of sum_m (theta_m - base) and s the mean of S's diagonal.

    Only for matrices; tensors of any other rank give base + scale mean_m (theta_m - base), as the authors' code has it.
    s is the mean over all min(rows, columns) singular values. Singular values that are 0 up to rounding (below
    max(rows, columns) 2^-52 times the largest) stay 0.

    Attributes:
        scale: factor of the merged task vector: alpha of the paper, which tunes it on validation data.
    Source: Marczak et al. 2025, arXiv:2502.04959, section 4.1 (isotropic merging in common subspace).
    """

    scale: float = 1.0

    name = "iso_c"
    base = "required"

    def __post_init__(self) -> None:
        check_number(self.name, "scale", self.scale)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        assert base is not None, "the engine reads the base of a method that requires one"
        origin = base.double()
        summed = tensors[0].double() - origin
        for tensor in tensors[1:]:
            summed.add_(tensor.double() - origin)
        vector = _isotropic(summed) if base.dim() == 2 and base.numel() else summed.div_(len(tensors))
        return vector.mul_(self.scale).add_(origin).to(base.dtype)


def _isotropic(matrix: Tensor) -> Tensor:
    """Return the matrix with every singular value replaced by their mean."""
    import torch

    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    present = s > max(matrix.shape) * torch.finfo(s.dtype).eps * s[0]
    return (u * (present * s.mean())) @ vh
