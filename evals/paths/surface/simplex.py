"""Simplexes of low loss: volumes, points drawn inside, and the vertices that are grown.

A simplex with vertices v_0 .. v_n is the set of their weighted averages. Its volume follows from the distances of its vertices
alone (Cayley and Menger):

    V^2 = (-1)^(n + 1) / (2^n (n!)^2) * det [[0, 1 .. 1], [1, 0, d_01^2 ..], ..]

SPRO grows a simplex from trained models: a new vertex starts at the mean of the others, and is trained for the least expected
loss at points drawn evenly from the simplexes that it belongs to, less lambda log V of each, which pushes it away from the
others. ESPRO grows a simplex from each of several models, and averages the predictions of points drawn from all of them.

Source: Benton et al. 2021, arXiv:2102.13042, sections 3 and 5. Their code takes V^2 for the volume.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from evals.paths.surface.weights import Weights

# Added to the squared volume before its logarithm is taken, relative to the vertices' spread: a new vertex starts with none.
SMALL = 1e-4


def squared_volume(squares: Float[Tensor, "vertices vertices"]) -> Tensor:
    """Return the squared volume of a simplex from the squared distances of its vertices, by Cayley and Menger; float64.

    Args:
        squares: symmetric, 0 on the diagonal; a single vertex has volume 1 (dimension 0).
    """
    n = len(squares) - 1
    border = torch.ones(n + 2, n + 2, dtype=torch.float64)
    border[0, 0] = 0.0
    border = torch.cat([border[:1], torch.cat([border[1:, :1], squares.double()], 1)], 0)
    sign = -1.0 if n % 2 == 0 else 1.0
    return sign * torch.linalg.det(border) / (2.0**n * math.factorial(n) ** 2)


def volume(squares: Float[Tensor, "vertices vertices"]) -> float:
    """Return the volume of a simplex from the squared distances of its vertices; 0 where rounding makes its square negative."""
    return math.sqrt(max(float(squared_volume(squares)), 0.0))


def regular_share(squares: Float[Tensor, "vertices vertices"]) -> float:
    """Return the volume as a share of that of the regular simplex with the same mean squared side: 1 is as even as can be.

    Volumes of different dimensions have different units; this has none.
    """
    n = len(squares) - 1
    if n == 0:
        return 1.0
    side = float(squares.sum()) / (n * (n + 1))
    regular = side**n * (n + 1) / (2.0**n * math.factorial(n) ** 2)
    return math.sqrt(max(float(squared_volume(squares)), 0.0) / regular) if regular > 0 else 0.0


def drawn_weights(count: int, numbers: random.Random) -> list[float]:
    """Return weights of a point drawn evenly from a simplex: -log U, divided by their sum."""
    drawn = [-math.log(1.0 - numbers.random()) for _ in range(count)]
    total = sum(drawn)
    return [each / total for each in drawn]


def squared_distances_to(point: Weights, others: Sequence[Weights]) -> Tensor:
    """Return the squared distances of a point to other weights, differentiable in the point; float64, shape (others,)."""
    rows = []
    for other in others:
        # Halves, whose difference is in the range of float32 whatever the two are.
        halves = (torch.sub(point[n] * 0.5, other[n], alpha=0.5) for n in point if point[n].is_floating_point())
        norms = [2 * torch.linalg.vector_norm(half, dtype=torch.float64) for half in halves]
        rows.append(torch.stack(norms).square().sum())
    return torch.stack(rows)


@dataclass(frozen=True)
class VolumePenalty:
    """Minus lambda times the logarithm of the volumes of the simplexes that a new vertex belongs to.

    Attributes:
        simplexes: the other vertices of each.
        squares: their squared distances, for each simplex.
        strength: lambda.
    """

    simplexes: tuple[tuple[Weights, ...], ...]
    squares: tuple[Tensor, ...]
    strength: float

    def __call__(self, points: Sequence[Weights]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for others, known in zip(self.simplexes, self.squares, strict=True):
            to_others = squared_distances_to(points[0], others).cpu()
            scale = max(float(to_others.detach().mean()), 1e-12)
            total = total + log_volume(known / scale, to_others / scale)
        return -self.strength * total


def log_volume(known: Tensor, to_others: Tensor) -> Tensor:
    """Return half the logarithm of the squared volume plus SMALL of that of a regular simplex of side 1.

    Args:
        known: squared distances of the other vertices, shape (others, others).
        to_others: those of the new vertex to them, shape (others,).
    """
    n = len(to_others)
    column = to_others[:, None]
    squares = torch.cat(
        [torch.cat([known.double(), column], 1), torch.cat([column.T, torch.zeros(1, 1, dtype=torch.float64)], 1)], 0
    )
    regular = (n + 1) / (2.0**n * math.factorial(n) ** 2)
    return 0.5 * torch.log(squared_volume(squares).clamp(min=0.0) / regular + SMALL)


def low_loss_dimension(largest: Sequence[float], bound: float) -> int:
    """Return the largest dimension up to which a growing simplex stays low: every loss up to it is within the bound.

    Args:
        largest: the largest loss measured in the simplex of dimension 0, 1, ...
        bound: the loss that counts as low.
    """
    dimension = 0
    for k, loss in enumerate(largest):
        if not loss <= bound:
            break
        dimension = k
    return dimension
