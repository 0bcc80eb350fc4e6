"""Weights of several models as vectors: their combinations, and the inner products of their differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Weights = Mapping[str, Tensor]
# Entries of each tensor that are widened to float64 at a time.
BLOCK = 1 << 20
# Two models that are nearer to one another than this share of the largest distance lose digits beside it.
LEAST_SHARE = 1e-5


def combine(models: Sequence[Weights], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """Return sum_k c_k w_k, tensor by tensor in float32; tensors of integers are those of the first model.

    A model whose coefficient is 0 is left out of the sum, and one whose coefficient is 1, where all others are 0, is returned bit
    for bit.

    Args:
        coefficients: one for each model.
    """
    parts = [(float(c), model) for c, model in zip(coefficients, models, strict=True) if c != 0]
    if len(parts) == 1 and parts[0][0] == 1:
        return dict(parts[0][1])
    return {name: _sum(name, parts) if first.is_floating_point() else first for name, first in models[0].items()}


def _sum(name: str, parts: Sequence[tuple[float, Weights]]) -> Tensor:
    (first, model), *others = parts
    total = model[name] * first
    for coefficient, other in others:
        total = total.add_(other[name], alpha=coefficient)
    return total


def gram(models: Sequence[Weights]) -> Float[np.ndarray, "models models"]:
    """Return the inner products <w_i - w_o, w_j - w_o>, summed in float64 over all tensors but those of integers.

    Combinations with coefficients that sum to 0 do not depend on the model o. It is the first, or one of the two nearest models
    where another is so far away that their distance would be lost in the rounding of the products.
    """
    products = _gram(models, 0)
    apart = distances(products) + np.diag(np.full(len(models), np.inf))
    nearest = np.unravel_index(apart.argmin(), apart.shape)
    if len(models) > 1 and apart[nearest] < LEAST_SHARE * products.diagonal().max() ** 0.5:
        products = _gram(models, int(nearest[0]))
    return products


def _gram(models: Sequence[Weights], origin: int) -> Float[np.ndarray, "models models"]:
    count = len(models)
    total = torch.zeros(count, count, dtype=torch.float64)
    for name, first in models[0].items():
        if not first.is_floating_point():
            continue
        flat = [model[name].reshape(-1) for model in models]
        for start in range(0, first.numel(), BLOCK):
            block = torch.stack([each[start : start + BLOCK].double() for each in flat])
            block -= block[origin].clone()
            total += block @ block.T
    return total.numpy()


def inner(products: np.ndarray, a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Return <sum_k a_k w_k, sum_k b_k w_k> from `gram`, for coefficients that sum to 0."""
    return float(np.asarray(a, dtype=np.float64) @ products @ np.asarray(b, dtype=np.float64))


def distances(products: Float[np.ndarray, "models models"]) -> Float[np.ndarray, "models models"]:
    """Return the Euclidean distances of all pairs of models from `gram`."""
    square = np.diag(products)
    apart: np.ndarray = np.sqrt(np.maximum(square[:, None] + square - 2 * products, 0.0))
    np.fill_diagonal(apart, 0.0)
    return apart


def length(weights: Weights) -> float:
    """Return the Euclidean norm over all tensors but those of integers, summed in float64."""
    parts = (float(torch.linalg.vector_norm(t, dtype=torch.float64)) for t in weights.values() if t.is_floating_point())
    return math.sqrt(sum(part**2 for part in parts))
