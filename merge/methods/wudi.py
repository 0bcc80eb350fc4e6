"""WUDI: the merged task vector that interferes least with every model, by least squares."""

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
class Wudi(Method):
    """Return base + tau, with the tau of least sum_m |(tau - tau_m) tau_m^T|^2 / |tau_m|^2, tau_m = theta_m - base.

    A row of tau_m is a combination of inputs of its layer, so tau should act on the rows of tau_m as tau_m does: RegMean
    without data. The paper takes 300 steps of Adam (rate 1e-5) from the sum of the tau_m. The objective is quadratic, so its
    minimum is solved for: tau G = sum_m tau_m G_m, with G_m = tau_m^T tau_m / |tau_m|^2 and G = sum_m G_m. If several tau
    are minimal, the shortest is taken, which is 0 outside the span of the tau_m; gradient descent from the sum tends to it.
    The paper's few steps stop short of the minimum; `ridge` keeps the result similarly close to the sum.
    Only for matrices, read as (out, in) whichever way round they are stored; tensors of any other rank give base + mean_m tau_m.
    The authors' repository (WUDI-Merging) takes 300 steps at rate 2e-5 for RoBERTa, and divides by |tau_m|^2 as here; a script
    of it for images (coef.py) divides by |tau_m|, merges attention and feed-forward weights, and leaves all else at the base.

    Attributes:
        ridge: adds ridge g |tau - sum_m tau_m|^2 to the objective, g the mean eigenvalue of G: 0 gives the paper's minimum,
            a large value the sum of the task vectors.
    Source: Cheng et al. 2025, arXiv:2503.08099, section 3 (the objective), algorithm 1 (the steps).
    """

    ridge: float = 0.0

    name = "wudi"
    base = "required"

    def __post_init__(self) -> None:
        check_number(self.name, "ridge", self.ridge, 0)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        assert base is not None, "the engine reads the base of a method that requires one"
        origin = base.double()
        vectors = [tensor.double() - origin for tensor in tensors]
        if base.dim() != 2:
            return sum(vectors, start=origin * 0).div_(len(vectors)).add_(origin).to(base.dtype)
        nonzero = [vector for vector in vectors if bool((vector != 0).any())]
        if not nonzero:
            return base.clone()
        out, width = base.shape
        solve = _by_outputs if len(nonzero) * out < width else _by_inputs
        return solve(nonzero, self.ridge).add_(origin).to(base.dtype)


def _by_inputs(vectors: Sequence[Tensor], ridge: float) -> Tensor:
    """Return the minimum from the normal equations, tau (G + r) = sum_m tau_m G_m + r sum_m tau_m; G is (in, in)."""
    import torch

    width = vectors[0].shape[1]
    gram = vectors[0].new_zeros(width, width)
    target = torch.zeros_like(vectors[0])
    for vector in vectors:
        normalised = (vector.T @ vector).div_(float(vector.square().sum()))
        gram.add_(normalised)
        target.addmm_(vector, normalised)
    pull = ridge * float(gram.trace()) / width
    if pull > 0:
        for vector in vectors:
            target.add_(vector, alpha=pull)
    return target @ _inverse(gram, pull)


def _by_outputs(vectors: Sequence[Tensor], ridge: float) -> Tensor:
    """Return the same minimum as a combination of the models' rows: cheaper if there are fewer rows than inputs.

    With A the stacked rows of all tau_m / |tau_m|, G is A^T A, and (A^T A + r)^-1 A^T = A^T (A A^T + r)^-1.
    """
    import torch

    out, width = vectors[0].shape
    lengths = [float(vector.square().sum()) ** 0.5 for vector in vectors]
    rows = torch.cat([vector / length for vector, length in zip(vectors, lengths, strict=True)])
    inner = rows @ rows.T
    pull = ridge * float(inner.trace()) / width
    # tau_m in coordinates of its rows, tau_m tau_m^T / |tau_m|: the diagonal blocks of the inner products.
    target = rows.new_empty(out, len(rows))
    for m, length in enumerate(lengths):
        block = slice(m * out, (m + 1) * out)
        target[:, block] = length * inner[block, block]
        target[:, block].diagonal().add_(pull * length)
    return target @ _inverse(inner, pull) @ rows


def _inverse(gram: Tensor, pull: float) -> Tensor:
    """Return (gram + pull)^-1, zero along eigenvectors whose eigenvalue in gram is 0 to rounding."""
    import torch

    values, vectors = torch.linalg.eigh(gram)
    present = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    return (vectors * (present / (values + pull).where(present, 1))) @ vectors.T
