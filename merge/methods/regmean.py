"""RegMean: the linear layer whose outputs are nearest to those of all models, each on its own inputs."""

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

# Below this share of the largest, an eigenvalue of a Gram matrix kept in float32 is rounding.
RANK = 1e-5


@dataclass(frozen=True)
class RegMean(Method):
    """Return (sum_m G_m)^-1 sum_m G_m W_m, the W of least sum_m ||X_m W - X_m W_m||^2, with G_m = X_m' X_m / rows.

    W is (in, out) here; torch's Linear stores its transpose. Tensors without a Gram matrix (biases, LayerNorm, embeddings)
    are averaged. Solved in float64 for the step from the plain average, inputs scaled to unit second moment, by Cholesky.
    Where the inputs of all models together span fewer directions than there are (possible with alpha = 1), by the
    pseudo-inverse: along directions that no input has, the result is the plain average.

    Attributes:
        alpha: what the off-diagonal of G is multiplied by; 1 is the regression itself, 0 weighs every input on its own. No one
            value serves every model: the authors' runs take 0.1 for DeBERTa-large and for RoBERTa on emotions, and 1 on
            GLUE; 0.9 is what later implementations keep.
    Source: Jin et al. 2023, arXiv:2212.09849, equations 2 and 3.
    """

    alpha: float = 0.9

    name = "regmean"
    statistics = "gram"

    def __post_init__(self) -> None:
        check_number(self.name, "alpha", self.alpha, low=0.0, high=1.0)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        plain = Linear()(tensors)
        if not context.statistics:
            return plain
        # A Gram matrix with a first axis of size 1 belongs to a weight stored as (in, out).
        stored_in_out = context.statistics[0].ndim == 3
        grams = [self._reduced(gram[0] if stored_in_out else gram) for gram in context.statistics]
        inputs = [tensor if stored_in_out else tensor.T for tensor in tensors if tensor.ndim == 2]
        if [len(g) for g in grams] != [len(w) for w in inputs] or len(inputs) != len(tensors):
            raise MismatchError(
                f"regmean: {context.name} has Gram matrices of sizes {[len(g) for g in grams]} for weights of shapes "
                f"{[tuple(t.shape) for t in tensors]}. Measure them again."
            )
        average = (plain if stored_in_out else plain.T).double()
        pull = sum((g @ (w.double() - average) for g, w in zip(grams, inputs, strict=True)), average * 0)
        merged = average + _solve(sum(grams[1:], grams[0]), pull)
        return (merged if stored_in_out else merged.T).contiguous().to(plain.dtype)

    def _reduced(self, gram: Tensor) -> Tensor:
        """Return the Gram matrix in float64 with its off-diagonal multiplied by alpha."""
        wide = gram.double()
        return wide * self.alpha + wide.diagonal().diag() * (1 - self.alpha)


def _solve(gram: Tensor, pull: Tensor) -> Tensor:
    """Return the step s with gram s = pull; 0 along directions that gram does not have."""
    import torch

    power = gram.diagonal()
    silent = power <= 0  # an input that is 0 on all text
    scale = torch.where(silent, 1.0, power).rsqrt()
    scaled = gram * scale[:, None] * scale + torch.where(silent, 1.0, 0.0).diag()
    factor, failed = torch.linalg.cholesky_ex(scaled)
    target = pull * scale[:, None]
    if not failed and bool((factor.diagonal().square() > RANK).all()):
        return torch.cholesky_solve(target, factor) * scale[:, None]
    values, vectors = torch.linalg.eigh(scaled)
    inverse = torch.where(values > RANK * values.max(), values, torch.inf).reciprocal()
    return vectors @ (inverse[:, None] * (vectors.T @ target)) * scale[:, None]
