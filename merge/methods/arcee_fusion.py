"""Arcee fusion: the base, with the most important entries of a fine-tuned model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merge.errors import UsageError
from merge.methods.checks import check_choice, check_flag
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method
from merge.methods.sphere import PIECE, as_rows

if TYPE_CHECKING:
    from torch import Tensor

# Added to every probability, so that its logarithm is finite.
PROBABILITY_FLOOR = 1e-8


@dataclass(frozen=True)
class ArceeFusion(Method):
    """Return the model's entry where its importance reaches a threshold, the base's elsewhere.

    The importance of an entry is |theta - base| times the divergence of its row, KL(softmax(theta) || softmax(base)) along
    the last axis, each probability raised by 1e-8. The threshold is median + 1.5 (Q3 - Q1) of the tensor's n importances, each
    quartile the entry at floor(q (n-1)) in sorted order. A row with one entry has no divergence.
    The quartiles are exact; mergekit estimates them from a million random entries, so that its result depends on the seed.

    Attributes:
        arithmetic: of the importances: "float64", or "tensor", in the dtype of the arithmetic (mergekit). In float32 the
            divergence of a row that a fine-tune hardly changed is rounding.
        as_stored: rows are those of the file, not the outputs of a layer: the two differ for GPT-2's Conv1D (mergekit).
    Source: mergekit 0.1.5, arcee_fusion.
    """

    arithmetic: str = "float64"
    as_stored: bool = False

    name = "arcee_fusion"
    base = "required"

    def __post_init__(self) -> None:
        check_choice(self.name, "arithmetic", self.arithmetic, ("float64", "tensor"))
        check_flag(self.name, "as_stored", self.as_stored)

    def check_models(self, models: int) -> None:
        """Stop unless there is one model besides the base."""
        if models != 1:
            raise UsageError(
                f"arcee_fusion merges exactly one model into its base, found {models}. Use --method ties for more."
            )

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        import torch

        assert base is not None, "the engine reads the base of a method that requires one"
        if not base.numel():
            return base.clone()
        model, origin = as_rows(tensors[0], whole=False), as_rows(base, whole=False)
        if self.arithmetic == "tensor":
            p, q = model.softmax(-1) + PROBABILITY_FLOOR, origin.softmax(-1) + PROBABILITY_FLOOR
            measured = (model - origin).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
            scores = measured.cpu().numpy()
        else:
            scores = importance(model, origin)
        keep = torch.from_numpy(scores >= threshold(scores.ravel())).to(base.device)
        return torch.where(keep, model, origin).reshape(base.shape)


def importance(model: Tensor, base: Tensor) -> Any:
    """Return |model - base| times the divergence of the row: a float64 numpy array of the matrix's shape."""
    import numpy as np

    scores = np.empty(tuple(model.shape))
    step = max(1, PIECE // model.shape[1])
    for top in range(0, len(model), step):
        model_rows, base_rows = model[top : top + step].double(), base[top : top + step].double()
        p, q = model_rows.softmax(-1) + PROBABILITY_FLOOR, base_rows.softmax(-1) + PROBABILITY_FLOOR
        divergence = (p * (p / q).log()).sum(-1, keepdim=True)
        scores[top : top + step] = ((model_rows - base_rows).abs() * divergence).cpu().numpy()
    return scores


def threshold(values: Any) -> float:
    """Return median + 1.5 (Q3 - Q1) of a flat array, each quartile the entry at floor(q (n-1)) in sorted order."""
    import numpy as np

    ranks = [(len(values) - 1) * k // 4 for k in (1, 2, 3)]
    first, median, third = np.partition(values, ranks)[ranks]
    return float(median + values.dtype.type(1.5) * (third - first))
