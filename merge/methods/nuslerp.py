"""NuSLERP: slerp by weights, of whole tensors or of their rows, or of task vectors if there is a base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import UsageError
from merge.methods.checks import check_choice, check_flag, check_weights
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method
from merge.methods.sphere import arc, as_rows, combine, cosines, gram

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Nuslerp(Method):
    """Return (sin((1-t) w) a + sin(t w) b) / sin(w), with t = weights_2 / (weights_1 + weights_2) and w their angle.

    With a base, a and b are the task vectors, and the base is added. Where the angle is not defined the result is (1-t) a + t b.

    Attributes:
        weights: one per model; equal when None.
        vectors: what is interpolated as one vector: the whole "tensor", each of its "rows" (last axis), or each of its
            "columns" (first axis). In mergekit, rows are nuslerp_flatten=false, and columns nuslerp_row_wise=true too.
        as_stored: rows and columns are those of the file, not outputs and inputs of a layer: they differ for GPT-2's Conv1D
            (mergekit).
    Source: mergekit 0.1.5, nuslerp; slerp is Shoemake 1985, section 3.3.
    """

    weights: tuple[float, ...] | None = None
    vectors: str = "tensor"
    as_stored: bool = False

    name = "nuslerp"
    base = "optional"

    def __post_init__(self) -> None:
        check_weights(self.name, self.weights, normalize=True)
        check_choice(self.name, "vectors", self.vectors, ("tensor", "rows", "columns"))
        check_flag(self.name, "as_stored", self.as_stored)

    def check_models(self, models: int) -> None:
        """Stop unless there are two models."""
        if models != 2:
            raise UsageError(f"nuslerp merges exactly two models, found {models}. Use --method multislerp for more.")

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        first, second = self.weights or (1.0, 1.0)
        by_columns = self.vectors == "columns" and tensors[0].dim() > 1
        inputs = [*tensors, *([] if base is None else [base])]
        if by_columns:
            inputs = [tensor.transpose(0, -1) for tensor in inputs]
        rows = [as_rows(tensor, self.vectors == "tensor") for tensor in inputs]
        origin = None if base is None else rows[2]
        cosine = cosines(gram(rows[:2], origin))[0, 1]
        merged = combine(rows[:2], arc(cosine, second / (first + second)), origin).reshape(inputs[0].shape)
        return merged.transpose(0, -1).contiguous() if by_columns else merged
