"""Karcher mean: the mean direction of the models on the sphere, by exact angles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import MismatchError, UsageError
from merge.methods.checks import check_choice, check_each, check_number, check_weights
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method
from merge.methods.sphere import NO_DIRECTION, as_rows, combine, cosines, gram

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Karcher(Method):
    """Return (sum_m w_m |x_m|) mu, with mu the unit vector of least sum_m w_m angle(mu, u_m)^2, u_m = x_m / |x_m|.

    Computed by steps along the mean of the logarithms, mu <- exp_mu(sum_m w_m log_mu(u_m)), from the direction of the
    weighted sum of the u_m. Every mu is a combination of the u_m, so the steps update its coefficients from the cosines of
    the models, in float64. For two models it is slerp, up to the length. A model whose tensor is 0 has no direction and is
    left out of mu. Where mu is not defined (the u_m cancel, or one is opposite to the mean) the result is the weighted
    average, as for slerp.

    Attributes:
        weights: one per model, not negative; equal when None.
        tol: length of a step, in radians, below which the iteration stops. mergekit stops at 1e-5.
        max_iter: maximum number of steps. mergekit takes 10 and then stops without an error.
        arithmetic: "float64", on the cosines as above, or "tensor", on the unit vectors in the dtype of the arithmetic, with no
            error at max_iter (mergekit). In float32 the angle of two fine-tunes of one model is rounding: the mean of "tensor"
            is then often nearer to one of them, by as much as they differ.
    Raises:
        MismatchError: no convergence within max_iter steps: the models are spread over more than half the sphere.
    Source: Karcher 1977, "Riemannian center of mass and mollifier smoothing", section 1; mergekit cites arXiv:2603.04972.
    """

    weights: tuple[float, ...] | None = None
    tol: float = 1e-12
    max_iter: int = 200
    arithmetic: str = "float64"

    name = "karcher"

    def __post_init__(self) -> None:
        check_weights(self.name, self.weights, normalize=True)
        check_each(self.name, "weights", self.weights or 1.0, 0, math.inf)
        check_number(self.name, "tol", self.tol, 0, 1, above=True)
        check_number(self.name, "max_iter", self.max_iter, 1)
        if not isinstance(self.max_iter, int):
            raise UsageError(f"karcher: max_iter must be a whole number, found {self.max_iter!r}.")
        check_choice(self.name, "arithmetic", self.arithmetic, ("float64", "tensor"))

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        import torch

        weights = torch.tensor(self.weights or (1.0,) * len(tensors), dtype=torch.float64)
        weights /= weights.sum()
        if self.arithmetic == "tensor":
            return self._on_tensors(tensors, weights.tolist())
        rows = [as_rows(tensor, whole=True) for tensor in tensors]
        products = gram(rows).cpu()
        lengths = products[..., 0].diagonal().sqrt()
        nonzero = torch.where(lengths > 0, weights, 0)
        mean = None
        if float(nonzero.sum()) > 0:
            mean = self._mean(cosines(products)[..., 0], nonzero / nonzero.sum(), context)
        if mean is None:
            return combine(rows, weights.tolist()).reshape(tensors[0].shape)
        scaled = float(weights @ lengths) * mean / lengths.where(lengths > 0, 1)
        return combine(rows, scaled.tolist()).reshape(tensors[0].shape)

    def _on_tensors(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Return the mean by steps on the unit vectors themselves, every number in their dtype; short angles are no steps."""
        import torch

        norms = [torch.linalg.vector_norm(tensor) for tensor in tensors]
        known = [k for k, norm in enumerate(norms) if float(norm) > self.tol]
        if not known:
            return torch.zeros_like(tensors[0])
        units = [tensors[k] / norms[k] for k in known]
        total = sum(weights[k] for k in known)
        shares = [weights[k] / total for k in known]
        mean = torch.zeros_like(units[0])
        for share, unit in zip(shares, units, strict=True):
            mean += share * unit
        length = torch.linalg.vector_norm(mean)
        mean = units[0].clone() if float(length) < self.tol else mean / length
        for _ in range(self.max_iter):
            step = torch.zeros_like(mean)
            for share, unit in zip(shares, units, strict=True):
                cosine = torch.dot(mean.flatten(), unit.flatten()).clamp(-1.0, 1.0)
                angle = torch.arccos(cosine)
                if float(angle) >= self.tol:
                    step += share * (angle / torch.sin(angle)) * (unit - cosine * mean)
            size = torch.linalg.vector_norm(step)
            if float(size) < self.tol:
                break
            mean = torch.cos(size) * mean + torch.sin(size) * (step / size)
            mean = mean / torch.linalg.vector_norm(mean)
        scale = sum(weight * norm for weight, norm in zip(weights, norms, strict=True))
        return scale * mean

    def _mean(self, cosine: Tensor, weights: Tensor, context: TensorContext) -> Tensor | None:
        """Return mu as coefficients of the unit vectors, or None where it is not defined."""
        length = float((weights @ cosine @ weights).clamp(min=0).sqrt())
        if length < NO_DIRECTION:
            return None
        mu, step = weights / length, math.inf
        for _ in range(self.max_iter):
            to_mu = (cosine @ mu).clamp(-1, 1)
            angle = to_mu.acos()
            if bool(((angle > math.pi - NO_DIRECTION) & (weights > 0)).any()):
                return None
            # theta / sin(theta), which is 1 at 0.
            stretch = (angle / angle.sin().where(angle > NO_DIRECTION, 1)).where(angle > NO_DIRECTION, 1)
            tangent = weights * stretch
            tangent = tangent - (tangent @ to_mu) * mu
            step = float((tangent @ cosine @ tangent).clamp(min=0).sqrt())
            if step < self.tol:
                return mu
            mu = math.cos(step) * mu + (math.sin(step) / step) * tangent
            mu = mu / (mu @ cosine @ mu).sqrt()
        tensor = f" of {context.name}" if context.name else ""
        raise MismatchError(
            f"karcher: the mean{tensor} has not converged: step {self.max_iter} is {step:.1e} radians, expected less than "
            f"{self.tol:g}. Raise max_iter or tol, or use --method multislerp, which needs no steps."
        )
