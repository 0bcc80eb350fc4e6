"""The pairs that show what clusters are: the nearest and the farthest inside clusters and between them, with their curves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evals.clusters.labels import together
from evals.clusters.pair_losses import PairLosses


@dataclass(frozen=True)
class ExtremePair:
    """A pair and the losses on the line between its models.

    Attributes:
        where: "inside" or "between"; extreme: "nearest" or "farthest", of the pairs there.
        models: their indices; lam = 0 is the first.
        distance: in the summary of the analysis.
        lam, loss: the curve; loss_error: of each mean loss, None for one row.
        accuracy: None where the task asks for a number.
    """

    where: str
    extreme: str
    models: tuple[int, int]
    distance: float
    lam: tuple[float, ...]
    loss: tuple[float, ...]
    loss_error: tuple[float, ...] | None
    accuracy: tuple[float, ...] | None

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def extreme_pairs(losses: PairLosses, distances: Any, labels: Any) -> tuple[ExtremePair, ...]:
    """Return up to four pairs; those between clusters are missing for one cluster, those inside where each has one model."""
    same = together(labels)
    pairs = []
    for where, chosen in (("inside", same), ("between", ~same)):
        measured = [pair for pair in losses.pairs if chosen[pair]]
        order = sorted(measured, key=lambda pair: float(distances[pair]))
        if order:
            pairs.append(_extreme(losses, distances, where, "nearest", order[0]))
        if len(order) > 1:
            pairs.append(_extreme(losses, distances, where, "farthest", order[-1]))
    return tuple(pairs)


def _extreme(losses: PairLosses, distances: Any, where: str, extreme: str, pair: tuple[int, int]) -> ExtremePair:
    curve, correct = losses.curve(*pair).astype(np.float64), losses.correct(*pair)
    rows = curve.shape[1]
    errors = tuple((curve.std(1, ddof=1) / np.sqrt(rows)).tolist()) if rows > 1 else None
    return ExtremePair(
        where=where,
        extreme=extreme,
        models=pair,
        distance=float(distances[pair]),
        lam=losses.lam,
        loss=tuple(curve.mean(1).tolist()),
        loss_error=errors,
        accuracy=None if correct is None else tuple(correct.mean(1).tolist()),
    )
