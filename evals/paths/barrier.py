"""Measuring the loss along the straight line between two models: a record of results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from evals.paths.line import Curve, make_curve
from evals.paths.temperature import best_temperature
from evals.predict.logits import task_logits
from evals.predict.predictor import Predictor, make_predictor
from evals.results.measure import named, reading_notes, record_key, setting
from evals.tasks.task import EvalTask, Rows
from merge.alignment.settings import AlignEntry
from merge.checkpoints.checkpoint import Checkpoint, finite_tensors
from merge.checkpoints.inputs import Encoded
from merge.disk.hashes import file_hash
from merge.progress import shown_by, track
from merge.run.rebase import Bases
from merge.symmetry.transform import Transform, apply_transform

T = TypeVar("T")


def barrier_key(
    pair: tuple[Checkpoint, Checkpoint],
    task: EvalTask,
    rows: Rows,
    columns: Sequence[int],
    settings: AlignEntry,
    seed: int,
    points: int,
) -> str:
    """Return the key under which a pair's barrier is stored; text and what is applied count by content, not by name."""
    alignment: dict[str, Any] | None = None
    if settings.moves:
        alignment = settings.model_dump(mode="json") | {"seed": seed}
        with suppress(OSError, TypeError):  # a Hub id, or the package's own text
            alignment["text"] = file_hash(Path(alignment["text"]))
        with suppress(OSError):  # what is not there is said where it is read
            alignment["apply"] = [file_hash(Path(path).expanduser()) for path in settings.apply or ()]
    hashes = [checkpoint.content_hash for checkpoint in pair]
    return record_key("barrier", task.name, rows.hash, hashes, points, columns, alignment)


def measure_pair(
    pair: tuple[Checkpoint, Checkpoint],
    bases: Bases,
    task: EvalTask,
    rows: Rows,
    columns: Sequence[int],
    points: int,
    predictor: Predictor | None = None,
    ready: tuple[Checkpoint, Checkpoint] | None = None,
) -> tuple[list[Curve], list[str]]:
    """Return the curve of the naive line and, if b was aligned, that of the aligned one; and notes on the reading.

    Args:
        pair: a, and b in its own basis.
        bases: what takes b to the label order of a, and to its units.
        columns: for each class of a, the task's class.
        points: of the even grid of lam, the ends included.
        predictor: made for a; by default one is made, in float32 on the CPU.
        ready: the same models as they were aligned: their norms folded, where the residual stream is rotated.
    """
    predictor = predictor or make_predictor(pair[0])
    encoded, gold = predictor.encode(rows), torch.tensor(rows.gold)
    labels = None if bases.labels[1] is None else Transform(bases.labels[1], {})
    ends = _ends(pair, bases, (None, labels))
    found = measure_line("naive", *ends, predictor, encoded, gold, task, columns, points)
    curves, first = [_curve("naive", found)], found[0]
    for aligned in bases.aligned:
        name = f"aligned ({aligned.by}; {aligned.choice.kept.name})"
        ends = _ends(ready or pair, bases, bases.transforms)
        if ready is not None and not predictor.fits(ready[0]):
            own = {"device": predictor.model.device, "cache": predictor.cache, "crew": predictor.crew}
            predictor = make_predictor(ready[0], **own)
        # The start is the same on both paths, but for a reference that was moved or rewritten too.
        known = first if ready is None and bases.transforms[0] is None else None
        found = measure_line(name, *ends, predictor, encoded, gold, task, columns, points, known)
        curves.append(_curve(name, found))
    return curves, reading_notes(task, columns, encoded)


def _ends(
    pair: tuple[Checkpoint, Checkpoint], bases: Bases, transforms: Sequence[Transform | None]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return both models' tensors by written name, float32, each moved."""
    ends = []
    for checkpoint, transform in zip(pair, transforms, strict=True):
        own = finite_tensors(checkpoint)
        if transform is not None and bases.spec is not None:
            own = apply_transform(bases.spec, transform, own)
        ends.append({checkpoint.written_name(n): t.float() if t.is_floating_point() else t for n, t in own.items()})
    return ends[0], ends[1]


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
    first: Point | None = None,
) -> list[Point]:
    """Return the losses along (1 - lam) a + lam b, raw and at every point's best temperature on these rows.

    Args:
        name: of the path, for the display of progress.
        a, b: float32 tensors by written name; b in the basis and label order of a.
        predictor: of the architecture; its weights are overwritten.
        gold: class of each row.
        columns: for each class of the model, the task's class.
        points: of the even grid of lam, the ends included.
        first: the point at lam = 0, where it is known already.
    """
    found = [] if first is None else [first]
    ticks = iter(track(range((points - len(found)) * predictor.steps(encoded)), f"{name} path"))

    def ticking(items: Sequence[T], label: str) -> Iterable[T]:
        return (item for item, _ in zip(items, ticks, strict=False))

    for lam in _grid(points)[len(found) :]:
        predictor.set({n: torch.lerp(a[n], b[n], lam) if a[n].is_floating_point() else a[n] for n in a})
        with shown_by(ticking):
            raw = predictor.logits(encoded)
        logits, predicted = task_logits(raw, columns, task)
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
