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


@dataclass(frozen=True)
class EncodedTask:
    """A data set that is measured along a path: its rows, as batches for the predictor, and its classes."""

    matched: MatchedTask
    encoded: Encoded


# From a model's outputs on a data set to (logits of the task's classes, predicted class).
Reading = Callable[[Tensor, MatchedTask], tuple[Tensor, Tensor]]


def class_logits(logits: Tensor, matched: MatchedTask) -> tuple[Tensor, Tensor]:
    """Return (logits of the task's classes, predicted class) from those of the model's own classes."""
    return task_logits(logits, matched.columns, matched.task)


def walk(
    path: Sequence[Coordinates],
    weights_at: Callable[[Coordinates], Mapping[str, Tensor]],
    predictor: Predictor,
    sets: Sequence[EncodedTask],
    label: str,
    reading: Reading = class_logits,
) -> list[tuple[Point, ...]]:
    """Return, at every point of a path, the losses on each data set, raw and at their best temperature; in float64.

    Args:
        weights_at: from coordinates to all weights by the names transformers writes; called once a point.
        predictor: of the architecture; its weights are overwritten.
        sets: all are measured in the same weights.
        label: of the path, for the display of progress.
    """
    steps = sum(predictor.steps(each.encoded) for each in sets)
    ticks = iter(track(range(len(path) * steps), label))

    def ticking(items: Sequence[T], label: str) -> Iterable[T]:
        return (item for item, _ in zip(items, ticks, strict=False))

    points = []
    for coordinates in path:
        predictor.set(weights_at(coordinates))
        measured = []
        for each in sets:
            with shown_by(ticking):
                logits = predictor.logits(each.encoded, f"{label}, at {coordinates}")
            check_finite(logits, f"{label}, at {coordinates}")
            measured.append(_point(logits, each.matched, reading))
        points.append(tuple(measured))
    next(ticks, None)  # lets the display finish
    return points


def _point(logits: Float[Tensor, "rows classes"], matched: MatchedTask, reading: Reading) -> Point:
    if matched.task.regression:
        return Point(regression_losses(logits, matched.task, matched.rows, matched.model)[0])
    gold = torch.tensor(matched.rows.gold)
    pooled, predicted = reading(logits, matched)
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
