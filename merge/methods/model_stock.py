"""Model Stock: the average of fine-tuned models, moved towards the base the more they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import UsageError
from merge.methods.checks import check_flag, check_number
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method
from merge.methods.sphere import NO_DIRECTION, as_rows, combine, cosines, gram

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ModelStock(Method):
    """Return t mean_m(theta_m) + (1-t) base, with t = N c / (1 + (N-1) c).

    N is the number of models and c the cosine of two task vectors, averaged over all pairs, separately for every tensor.
    Agreeing models (c = 1) are averaged, orthogonal ones (c = 0) give the base. As in the paper, t has no lower bound: if
    task vectors point apart (c < 0), t is negative and the result is on the opposite side of the base. Where 1 + (N-1) c is
    0 the task vectors cancel, t is not defined, and the base is kept. A task vector of 0 has c = 0 with the others.

    Attributes:
        filter_wise: use one t per row of a tensor (last axis) instead of one for the whole tensor.
        floor: smallest product of the lengths of two task vectors; a smaller one counts as it, so that their cosine is
            nearer to 0. mergekit has 1e-6, which matters for small tensors of a fine-tune.
        as_stored: rows are those of the file, not the outputs of a layer: the two differ for GPT-2's Conv1D (mergekit).
    Source: Jang et al. 2024, arXiv:2403.19522, section 4, equations 2 and 4.
    """

    filter_wise: bool = False
    floor: float = 0.0
    as_stored: bool = False

    name = "model_stock"
    base = "required"

    def __post_init__(self) -> None:
        check_flag(self.name, "filter_wise", self.filter_wise)
        check_number(self.name, "floor", self.floor, low=0.0)
        check_flag(self.name, "as_stored", self.as_stored)

    def check_models(self, models: int) -> None:
        """Stop unless there are two models or more."""
        if models < 2:
            raise UsageError(f"model_stock needs at least two models besides the base, found {models}.")

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        import torch

        assert base is not None, "the engine reads the base of a method that requires one"
        count = len(tensors)
        rows, origin = (
            [as_rows(tensor, not self.filter_wise) for tensor in tensors],
            as_rows(base, not self.filter_wise),
        )
        cosine = cosines(gram(rows, origin), self.floor)
        above, across = torch.triu_indices(count, count, 1)
        c = cosine[above, across].mean(0)  # one for every row
        below = 1 + (count - 1) * c
        t = torch.where(below > NO_DIRECTION, count * c / below.where(below > NO_DIRECTION, 1), 0)
        return combine(rows, [t / count] * count, origin).reshape(base.shape)
