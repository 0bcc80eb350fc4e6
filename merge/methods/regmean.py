"""RegMean: the linear layer whose outputs are closest to those of all models, each on its own inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import MismatchError
from merge.methods.checks import check_number
from merge.methods.context import EMPTY, TensorContext
from merge.methods.linear import Linear
from merge.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor

# Eigenvalues of a float32 Gram matrix below this share of the largest are rounding errors.
MIN_EIGENVALUE_RATIO = 1e-5


@dataclass(frozen=True)
class RegMean(Method):
    """Return (sum_m G_m)^-1 sum_m G_m W_m, the W of least sum_m ||X_m W - X_m W_m||^2, with G_m = X_m' X_m / rows.

    W is (in, out) here; torch's Linear stores its transpose. Tensors without a Gram matrix (biases, LayerNorm, embeddings)
    are averaged. Solved in float64 for the difference from the plain average, inputs scaled to unit second moment, by
    Cholesky. Where the inputs of all models do not span all directions (possible with alpha = 1), by the pseudo-inverse:
    in directions without any input the result is the plain average.
    X_m are inputs from text of model m's own task: --statistics a=A.jsonl --statistics b=B.jsonl, or the files that merge-models
    statistics wrote of these models. One text for all models (--statistics-text) is another merge, nearer to plain averaging.

    Attributes:
        alpha: factor of the off-diagonal of G; 1 is the exact regression, 0 treats every input separately. The best value
            depends on the model: the authors use 0.1 for DeBERTa-large and for RoBERTa on emotions, and 1 on GLUE; 0.9 is
            the default of later implementations.
    Source: Jin et al. 2023, arXiv:2212.09849, equations 2 and 3.
    """

    alpha: float = 0.9

    name = "regmean"
    statistics = "gram"

    def __post_init__(self) -> None:
        check_number(self.name, "alpha", self.alpha, low=0.0, high=1.0)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        average = Linear()(tensors)
        if not context.statistics:
            return average
        grams = [self._reduced(gram) for gram in context.statistics]
        inputs = [tensor.T for tensor in tensors if tensor.ndim == 2]
        if [len(g) for g in grams] != [len(w) for w in inputs] or len(inputs) != len(tensors):
            raise MismatchError(
                f"regmean: {context.name} has Gram matrices of sizes {[len(g) for g in grams]} for weights of shapes "
                f"{[tuple(t.shape) for t in tensors]}. Measure them again."
            )
        start = average.T.double()
        target = sum((g @ (w.double() - start) for g, w in zip(grams, inputs, strict=True)), start * 0)
        merged = start + _solve(sum(grams[1:], grams[0]), target)
        return merged.T.contiguous().to(average.dtype)

    def _reduced(self, gram: Tensor) -> Tensor:
        """Return the Gram matrix in float64 with its off-diagonal multiplied by alpha."""
        wide = gram.double()
        return wide * self.alpha + wide.diagonal().diag() * (1 - self.alpha)


def _solve(gram: Tensor, target: Tensor) -> Tensor:
    """Return the s with gram s = target, 0 in the null space of gram."""
    import torch

    power = gram.diagonal()
    silent = power <= 0  # inputs that are 0 on all text
    scale = torch.where(silent, 1.0, power).rsqrt()
    scaled = gram * scale[:, None] * scale + torch.where(silent, 1.0, 0.0).diag()
    factor, failed = torch.linalg.cholesky_ex(scaled)
    scaled_target = target * scale[:, None]
    if not failed and bool((factor.diagonal().square() > MIN_EIGENVALUE_RATIO).all()):
        return torch.cholesky_solve(scaled_target, factor) * scale[:, None]
    values, vectors = torch.linalg.eigh(scaled)
    inverse = torch.where(values > MIN_EIGENVALUE_RATIO * values.max(), values, torch.inf).reciprocal()
    return vectors @ (inverse[:, None] * (vectors.T @ scaled_target)) * scale[:, None]
