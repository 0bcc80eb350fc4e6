"""Losses at the points of a path through weight space: a line, a plane, a curve, a simplex.

A path is a list of coordinates and a function from coordinates to weights; every point is measured on the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evals.paths.temperature import best_temperature
from evals.predict.logits import check_finite, task_logits
from evals.predict.predictor import Predictor
from evals.predict.regression import regression_losses
from evals.tasks.label_names import MatchedTask
from merge.checkpoints.inputs import Encoded
from merge.progress import shown_by, track

Coordinates = TypeVar("Coordinates")
T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """The losses of one model on the path.

    Attributes:
        losses: cross-entropy of each row, or its squared error.
        correct: whether each row is predicted right; None where a number is predicted, as are the next two.
        temperature: the one with the least mean loss on these rows.
        calibrated: mean loss at that temperature.
    """

    losses: Float[Tensor, rows]  # noqa: F821
    correct: Bool[Tensor, rows] | None = None  # noqa: F821
    temperature: float | None = None
    calibrated: float | None = None


def walk(
    path: Sequence[Coordinates],
    weights_at: Callable[[Coordinates], Mapping[str, Tensor]],
    predictor: Predictor,
    matched: MatchedTask,
    encoded: Encoded,
    label: str,
) -> list[Point]:
    """Return the losses at every point of a path, each raw and at its best temperature; in float64.

    Args:
        weights_at: from coordinates to all weights by the names transformers writes.
        predictor: of the architecture; its weights are overwritten.
        encoded: the rows of the task, for this predictor.
        label: of the path, for the display of progress.
    """
    ticks = iter(track(range(len(path) * predictor.steps(encoded)), label))

    def ticking(items: Sequence[T], label: str) -> Iterable[T]:
        return (item for item, _ in zip(items, ticks, strict=False))

    points = []
    for coordinates in path:
        predictor.set(weights_at(coordinates))
        with shown_by(ticking):
            logits = predictor.logits(encoded, f"{label}, at {coordinates}")
        check_finite(logits, f"{label}, at {coordinates}")
        points.append(_point(logits, matched))
    next(ticks, None)  # lets the display finish
    return points


def _point(logits: Float[Tensor, "rows classes"], matched: MatchedTask) -> Point:
    if matched.task.regression:
        return Point(regression_losses(logits, matched.task, matched.rows, matched.model)[0])
    gold = torch.tensor(matched.rows.gold)
    pooled, predicted = task_logits(logits, matched.columns, matched.task)
    exact = pooled.double()
    temperature = best_temperature(exact.numpy(), gold.numpy())
    return Point(
        losses=torch.nn.functional.cross_entropy(exact, gold, reduction="none"),
        correct=predicted == gold,
        temperature=temperature,
        calibrated=float(torch.nn.functional.cross_entropy(exact / temperature, gold)),
    )


def interpolate(a: Mapping[str, Tensor], b: Mapping[str, Tensor], lam: float) -> dict[str, Tensor]:
    """Return (1 - lam) a + lam b; tensors of integers are those of a."""
    return {name: torch.lerp(a[name], b[name], lam) if a[name].is_floating_point() else a[name] for name in a}
