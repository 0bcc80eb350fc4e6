"""Units as rows: a tensor as a matrix with one row for each unit of an axis."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def unit_rows(
    tensor: Tensor, dim: int, span: int = 1, positions: Int[Tensor, ...] | None = None
) -> Float[Tensor, "units rest"]:
    """Return a tensor with the units along `span` dimensions from `dim` on as rows, in the tensor's dtype.

    Args:
        positions: of the units along those dimensions, laid flat; None for all of them in order. Its shape does not matter.
    """
    flat = tensor.flatten(dim, dim + span - 1).movedim(dim, 0)
    if positions is not None:
        flat = flat[positions.reshape(-1)]
    return flat.reshape(len(flat), -1)
