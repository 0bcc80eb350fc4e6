"""Measuring the loss along the straight line between two models: a record of results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from evals.measure import named, reading_notes, record_key, setting
from evals.paths.line import Curve, make_curve
from evals.paths.temperature import best_temperature
from evals.predict import task_logits
from evals.predictor import Predictor, make_predictor
from evals.task import EvalTask, Rows
from merge.bases import Bases
from merge.checkpoint import Checkpoint
from merge.hashes import file_hash
from merge.inputs import Encoded
from merge.material import finite_tensors
from merge.progress import Progress, silent
from merge.recipe import Recipe
from merge.transform import Transform, apply_transform

T = TypeVar("T")


def barrier_key(
    pair: tuple[Checkpoint, Checkpoint],
    task: EvalTask,
    rows: Rows,
    columns: Sequence[int],
    recipe: Recipe,
    points: int,
) -> str:
    """Return the key under which a pair's barrier is stored; calibration text counts by content, not by name."""
    alignment: dict[str, Any] | None = None
    if recipe.align.by != "none":
        alignment = recipe.align.model_dump(mode="json") | {"seed": recipe.seed}
        with suppress(OSError, TypeError):  # a Hub id, or the package's own text
            alignment["text"] = file_hash(Path(alignment["text"]))
    hashes = [checkpoint.content_hash for checkpoint in pair]
    return record_key("barrier", task.name, rows.hash, hashes, points, columns, alignment)


def measure_pair(
    pair: tuple[Checkpoint, Checkpoint],
    bases: Bases,
    task: EvalTask,
    rows: Rows,
    columns: Sequence[int],
    points: int,
    progress: Progress = silent,
    predictor: Predictor | None = None,
) -> tuple[list[Curve], list[str]]:
    """Return the curve of the naive line and, if b was aligned, that of the aligned one; and notes on the reading.

    Args:
        pair: a, and b in its own basis.
        bases: what takes b to the label order of a, and to its units.
        columns: for each class of a, the task's class.
        points: of the even grid of lam, the ends included.
        predictor: made for a; by default one is made, in float32 on the CPU.
    """
    labels = bases.labels[1]
    paths = [("naive", None if labels is None else Transform(labels, {}))]
    for aligned in bases.aligned:
        paths.append((f"aligned ({aligned.by}; {aligned.choice.kept.name})", bases.transforms[1]))
    predictor = predictor or make_predictor(pair[0])
    encoded, gold = predictor.encode(rows), torch.tensor(rows.gold)
    a, b = (
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in finite_tensors(c).items()}
        for c in pair
    )
    start = {pair[0].written_name(name): tensor for name, tensor in a.items()}
    curves: list[Curve] = []
    first: Point | None = None  # the start is the same on every path
    for name, transform in paths:
        moved = b if transform is None or bases.spec is None else apply_transform(bases.spec, transform, b)
        end = {pair[1].written_name(n): t for n, t in moved.items()}
        found = measure_line(name, start, end, predictor, encoded, gold, task, columns, points, progress, first)
        first = found[0]
        curves.append(_curve(name, found))
    return curves, reading_notes(task, columns, encoded)


@dataclass(frozen=True)
class Point:
    """What was measured of one model on the line.

    Attributes:
        losses: of every row, float64.
        correct: whether each row is right.
        temperature: the best one on these rows; `calibrated` is the mean loss there.
    """

    losses: Tensor
    correct: Tensor
    temperature: float
    calibrated: float


def measure_line(
    name: str,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    predictor: Predictor,
    encoded: Encoded,
    gold: Tensor,
    task: EvalTask,
    columns: Sequence[int],
    points: int,
    progress: Progress = silent,
    first: Point | None = None,
) -> list[Point]:
    """Return the losses along (1 - lam) a + lam b, raw and at every point's best temperature on these rows.

    Args:
        name: of the path, for the progress.
        a, b: float32 tensors by written name; b in the basis and label order of a.
        predictor: of the architecture; its weights are overwritten.
        gold: class of each row.
        columns: for each class of the model, the task's class.
        points: of the even grid of lam, the ends included.
        first: the point at lam = 0, where it is known already.
    """
    found = [] if first is None else [first]
    ticks = iter(progress(range((points - len(found)) * predictor.steps(encoded)), f"{name} path"))

    def ticking(items: Sequence[T], label: str) -> Iterable[T]:
        return (item for item, _ in zip(items, ticks, strict=False))

    for lam in _grid(points)[len(found) :]:
        predictor.set({n: torch.lerp(a[n], b[n], lam) if a[n].is_floating_point() else a[n] for n in a})
        logits, predicted = task_logits(predictor.logits(encoded, ticking), columns, task)
        exact = logits.double()
        losses = torch.nn.functional.cross_entropy(exact, gold, reduction="none")
        temperature = best_temperature(exact.numpy(), gold.numpy())
        calibrated = float(torch.nn.functional.cross_entropy(exact / temperature, gold))
        found.append(Point(losses, predicted == gold, temperature, calibrated))
    next(ticks, None)
    return found


def _grid(points: int) -> list[float]:
    return [k / (points - 1) for k in range(points)]


def _curve(name: str, found: Sequence[Point]) -> Curve:
    return make_curve(
        name,
        _grid(len(found)),
        torch.stack([point.losses for point in found]).numpy(),
        torch.stack([point.correct for point in found]).numpy(),
        [point.temperature for point in found],
        [point.calibrated for point in found],
    )


def barrier_record(
    key: str,
    task: EvalTask,
    rows: Rows,
    models: tuple[Checkpoint, Checkpoint],
    curves: Sequence[Curve],
    alignment: Mapping[str, Any] | None,
    notes: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """Return the barrier record of a pair."""
    record = setting("barrier", key, task, rows) | {
        "a": named(models[0]),
        "b": named(models[1]),
        "curves": [curve.to_json() for curve in curves],
        "notes": list(notes),
        "seconds": seconds,
    }
    return record if alignment is None else record | {"alignment": dict(alignment)}
