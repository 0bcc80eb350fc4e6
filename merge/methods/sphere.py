"""Geometry of tensors as vectors: inner products, angles and linear combinations.

Vectors in the span of a few models are determined by their inner products: methods compute on that small matrix in
float64 and read the tensors twice, once for the inner products and once for the combination.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Entries converted to float64 at once: few enough that torch sums them in one thread, so that results do not depend on
# the number of threads.
PIECE = 1 << 14
# Entries of float64 that BLAS multiplies in one thread.
BLAS_PIECE = 1 << 13
# Below this angle (radians) an arc equals the straight line up to rounding.
SMALL_ANGLE = 1e-4
# A sum of unit vectors shorter than this has no direction.
NO_DIRECTION = 1e-8


def as_rows(tensor: Tensor, whole: bool) -> Tensor:
    """Return the tensor as a matrix of row vectors: one row if `whole`, else the vectors along the last axis."""
    if whole or tensor.dim() < 2:
        return tensor.reshape(1, tensor.numel())
    return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def gram(matrices: Sequence[Tensor], origin: Tensor | None = None) -> Tensor:
    """Return the inner products of the models' rows relative to the origin: [i, j, row] = (x_i - o) . (x_j - o).

    Shape (models, models, rows), float64; no tensor is copied whole.
    """
    import torch

    rows, length = matrices[0].shape
    out = torch.zeros(len(matrices), len(matrices), rows, dtype=torch.float64, device=matrices[0].device)
    step = max(1, PIECE // max(length, 1))
    for top in range(0, rows, step):
        for left in range(0, length, PIECE):
            part = slice(top, top + step), slice(left, left + PIECE)
            vectors = [matrix[part].double() for matrix in matrices]
            if origin is not None:
                vectors = [vector - origin[part].double() for vector in vectors]
            for i, a in enumerate(vectors):
                for j, b in enumerate(vectors[: i + 1]):
                    out[i, j, part[0]] += (a * b).sum(-1)
    for i in range(len(matrices)):
        out[:i, i] = out[i, :i]
    return out


def inner_products(pieces: Iterable[Sequence[Any]]) -> tuple[float, float, float]:
    """Return (a . a, a . b, b . b) of two vectors in float64, given in pieces [part of a, part of b].

    Parts are torch tensors or numpy arrays of any shape; both give the same bits, and so do all pieces of a multiple of
    BLAS_PIECE entries.
    """
    import numpy as np

    buffers = np.empty((2, BLAS_PIECE))
    aa, ab, bb = 0.0, 0.0, 0.0
    for piece in pieces:
        parts = [(part if isinstance(part, np.ndarray) else part.cpu().numpy()).reshape(-1) for part in piece]
        for start in range(0, len(parts[0]), BLAS_PIECE):
            x, y = buffers[:, : min(BLAS_PIECE, len(parts[0]) - start)]
            x[:], y[:] = (part[start : start + BLAS_PIECE] for part in parts)
            aa, ab, bb = aa + float(x.dot(x)), ab + float(x.dot(y)), bb + float(y.dot(y))
    return aa, ab, bb


def cosines(products: Tensor, floor: float = 0.0) -> Tensor:
    """Return the cosines of a matrix of inner products, with its shape; a vector of length 0 has cosine 0 with all.

    A product of two lengths below the floor counts as the floor.
    """
    import torch

    lengths = products.diagonal().T.sqrt()  # (models, rows)
    scale = lengths[:, None] * lengths[None]
    return torch.where(scale > 0, products / scale.where(scale > 0, 1).clamp(min=floor), 0).clamp_(-1, 1)


def arc(cosine: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Return the two coefficients of slerp at t, for every row: sin((1-t) w) / sin(w) and sin(t w) / sin(w).

    (Anti)parallel vectors span no plane: their coefficients are those of linear interpolation, 1-t and t.
    """
    import torch

    angle = torch.acos(cosine)
    flat = (angle < SMALL_ANGLE) | (math.pi - angle < SMALL_ANGLE)
    sine = torch.sin(angle).where(~flat, 1)
    return (
        torch.where(flat, 1 - t, torch.sin((1 - t) * angle) / sine),
        torch.where(flat, t, torch.sin(t * angle) / sine),
    )


def combine(matrices: Sequence[Tensor], coefficients: Sequence[float | Tensor], origin: Tensor | None = None) -> Tensor:
    """Return o + sum_i c_i (x_i - o) as a new tensor; a coefficient is a number, or a tensor with one per row (float64)."""
    merged = None if origin is None else origin.clone()
    for matrix, coefficient in zip(matrices, coefficients, strict=True):
        vector = matrix if origin is None else matrix - origin
        if isinstance(coefficient, float) or coefficient.numel() == 1:
            number = float(coefficient)
            merged = vector * number if merged is None else merged.add_(vector, alpha=number)
        else:
            scale = coefficient.to(matrix.dtype)[:, None]
            merged = vector * scale if merged is None else merged.addcmul_(vector, scale)
    assert merged is not None, "at least one model"
    return merged
