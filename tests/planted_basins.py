"""Planted basins: models beside the minima of quadratic bowls, and the losses of rows on every line between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from evals.clusters.pair_losses import PairLosses

DIMENSIONS = 6


def planted_weights(sizes: Sequence[int], seed: int = 0, spread: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Return (weights of the models, minima): so many models beside each minimum, minima at right angles and 2 from 0."""
    draw = np.random.default_rng(seed)
    minima = 2 * np.linalg.qr(draw.normal(size=(DIMENSIONS, DIMENSIONS)))[0][: len(sizes)]
    offsets = [spread * draw.normal(size=(size, DIMENSIONS)) for size in sizes]
    return np.concatenate([minimum + each for minimum, each in zip(minima, offsets, strict=True)]), minima


def bowl_losses(weights: np.ndarray, minima: np.ndarray, rows: int, seed: int = 0) -> np.ndarray:
    """Return the loss of each row: half the squared distance to the nearest minimum, the row's own amount apart; (..., rows)."""
    draw = np.random.default_rng(seed)
    scale, offset = draw.uniform(0.5, 1.5, rows), draw.uniform(0, 0.2, rows)
    squares = ((weights[..., None, :] - minima) ** 2).sum(-1).min(-1) / 2
    return squares[..., None] * scale + offset


def planted(
    sizes: Sequence[int], rows: int = 60, points: int = 11, seed: int = 0, noise: float = 0.0, correct: bool = False
) -> PairLosses:
    """Return the losses of a sweep over models of so many basins; with noise on every row and point."""
    weights, minima = planted_weights(sizes, seed)
    draw, lam = np.random.default_rng(seed + 1), np.linspace(0, 1, points)
    n = len(weights)

    def measured(at: np.ndarray) -> np.ndarray:
        exact = bowl_losses(at, minima, rows, seed)
        return (exact + noise * draw.normal(size=exact.shape)).astype(np.float32)

    pairs = list(combinations(range(n), 2))
    ends = measured(weights)
    inside = {(i, j): measured(weights[i] + lam[1:-1, None] * (weights[j] - weights[i])) for i, j in pairs}
    return PairLosses(
        models=tuple(f"m{k}" for k in range(n)),
        lam=tuple(lam.tolist()),
        ends=ends,
        inside=inside,
        distance={(i, j): float(np.linalg.norm(weights[i] - weights[j])) for i, j in pairs},
        ends_correct=ends < 0.3 if correct else None,
        inside_correct={pair: losses < 0.3 for pair, losses in inside.items()} if correct else None,
    )
