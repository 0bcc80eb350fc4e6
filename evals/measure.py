"""Measuring models on rows: one model's scores, and the loss along the line between two; each a record of results.json."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

import merge
from evals.hans_scores import HANS_LO
from evals.hans_scores import score as hans_table
from evals.intervals import proportion_interval, score_intervals
from evals.label_orders import order_notes
from evals.paths.line import Curve, make_curve
from evals.paths.temperature import best_temperature
from evals.predict import encode_rows, match_labels, model_labels, predict, task_logits
from evals.predictions import PredictionTable, predictions_file, write_predictions_table
from evals.task import EvalTask, Rows
from merge.bases import Bases
from merge.checkpoint import Checkpoint
from merge.hashes import file_hash
from merge.inputs import Encoded
from merge.material import finite_tensors
from merge.model import build, set_weights
from merge.progress import Progress, silent
from merge.recipe import Recipe
from merge.transform import Transform, apply_transform

T = TypeVar("T")

POOLED = "classes that fold into one ({}) are pooled by their maximum in the loss; accuracy folds after the argmax"
CONSTANT = "every row was given the same prediction: {}"
CUT = "only the start was read of rows longer than the model takes: {} of {}"


def record_key(kind: str, *parts: Any) -> str:
    """Return the key of a result: a hash of everything that decides it."""
    return f"{kind}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]}"


def score_model(
    checkpoint: Checkpoint,
    task: EvalTask,
    rows: Rows,
    stated: Sequence[str] | None,
    progress: Progress = silent,
    folder: Path | str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the scores record of one model: its scores with their intervals, and the HANS table for HANS pairs.

    Args:
        folder: of results.json; every row's prediction is written beside it, and the record names the file.
        seed: of the bootstrap draws.
    """
    from evals.scores import task_scores  # loads evaluate, which takes seconds and which a barrier does not need

    begun = time.monotonic()
    columns = match_labels(task, checkpoint, stated)
    encoded = encode_rows(checkpoint, rows)
    label = f"predicting {task.name} with {checkpoint.source}"
    raw = predict(build_written(checkpoint), encoded, progress, label)
    loss, predicted = judge(raw, columns, task, rows)
    record = _setting("scores", score_key(checkpoint, task, rows, stated), task, rows) | {
        "model": named(checkpoint),
        "seed": seed,
        "scores": task_scores(task.metric, predicted.tolist(), rows.gold),
        "intervals": score_intervals(task.metric, predicted.tolist(), rows.gold, seed),
    }
    if task.name == "hans":
        record |= _hans(record, [task.labels[k] for k in predicted.tolist()], rows)
    record["scores"] = {**record["scores"], "loss": float(loss.mean())}
    names = model_labels(checkpoint, stated)
    notes = order_notes(task, names, columns, raw.argmax(1).tolist(), [int(k) for k in rows.gold])
    record["notes"] = [*reading_notes(task, columns, encoded), *_constant_note(predicted, task), *notes]
    record["seconds"] = time.monotonic() - begun
    if folder is not None:
        table = PredictionTable(
            key=record["key"],
            rows=rows.hash,
            labels=task.labels,
            classes=names,
            ids=rows.ids,
            gold=np.array(rows.gold),
            predicted=predicted.numpy(),
            logits=raw.numpy(),
            heuristics=tuple(pair.heuristic for pair in rows.extra) if task.name == "hans" else (),
        )
        write_predictions_table(folder, table)
        record["predictions"] = predictions_file(record["key"])
    return record


def judge(raw: Tensor, columns: Sequence[int], task: EvalTask, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return (loss, prediction) of every row: cross-entropy and class, or squared error and number for regression.

    Args:
        raw: logits of the model's own classes, shape (rows, classes).
        columns: for each class of the model, the task's class.
    """
    if task.regression:
        said = raw[:, 0].double()
        return (said - torch.tensor(rows.gold, dtype=torch.float64)) ** 2, said
    logits, predicted = task_logits(raw, columns, task)
    gold = torch.tensor(rows.gold, dtype=torch.int64)
    return torch.nn.functional.cross_entropy(logits.double(), gold, reduction="none"), predicted


def _hans(record: Mapping[str, Any], labels: Sequence[str], rows: Rows) -> dict[str, Any]:
    """Return what HANS adds to a record: the table, and HANS-LO as a score of its own where rows are of that cell."""
    table = hans_table(rows.extra, dict(zip(rows.ids, labels, strict=True)))
    added: dict[str, Any] = {"hans": table.to_json()}
    if count := table.cell_counts.get(HANS_LO):
        interval = proportion_interval(round(table.hans_lo * count), count)
        added["scores"] = {**record["scores"], "hans_lo": table.hans_lo}
        added["intervals"] = {**record["intervals"], "hans_lo": interval.to_json()}
    return added


def _constant_note(predicted: Tensor, task: EvalTask) -> list[str]:
    """Say so where every row of several was given the same prediction: no score of such a model means much."""
    if len(predicted) < 2 or not bool((predicted == predicted[0]).all()):
        return []
    value = f"{float(predicted[0]):g}" if task.regression else task.labels[int(predicted[0])]
    return [CONSTANT.format(value)]


def score_key(checkpoint: Checkpoint, task: EvalTask, rows: Rows, stated: Sequence[str] | None) -> str:
    """Return the key under which a model's scores are stored: they depend on weights, rows and what its classes mean."""
    columns = match_labels(task, checkpoint, stated)
    return record_key("scores", task.name, task.metric, rows.hash, checkpoint.content_hash, columns)


def build_written(checkpoint: Checkpoint) -> Any:
    """Return a checkpoint's model in float32."""
    tensors = {checkpoint.written_name(name): tensor for name, tensor in finite_tensors(checkpoint).items()}
    return build(checkpoint.config, tensors, torch.float32)


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
) -> tuple[list[Curve], list[str]]:
    """Return the curve of the naive line and, if b was aligned, that of the aligned one; and notes on the reading.

    Args:
        pair: a, and b in its own basis.
        bases: what takes b to the label order of a, and to its units.
        columns: for each class of a, the task's class.
        points: of the even grid of lam, the ends included.
    """
    labels = bases.labels[1]
    paths = [("naive", None if labels is None else Transform(labels, {}))]
    for aligned in bases.aligned:
        paths.append((f"aligned ({aligned.by}; {aligned.choice.kept.name})", bases.transforms[1]))
    encoded, gold, model = encode_rows(pair[0], rows), torch.tensor(rows.gold), build_written(pair[0])
    a, b = (
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in finite_tensors(c).items()}
        for c in pair
    )
    curves = []
    for name, transform in paths:
        moved = b if transform is None or bases.spec is None else apply_transform(bases.spec, transform, b)
        start, end = (
            {c.written_name(n): t for n, t in tensors.items()} for c, tensors in zip(pair, (a, moved), strict=True)
        )
        curves.append(measure_line(name, start, end, model, encoded, gold, task, columns, points, progress))
    return curves, reading_notes(task, columns, encoded)


def measure_line(
    name: str,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    model: Any,
    encoded: Encoded,
    gold: Tensor,
    task: EvalTask,
    columns: Sequence[int],
    points: int,
    progress: Progress = silent,
) -> Curve:
    """Return the curve of losses along (1 - lam) a + lam b, raw and at every point's best temperature on these rows.

    Args:
        a, b: float32 tensors by written name; b in the basis and label order of a.
        model: a skeleton of the architecture; its weights are overwritten.
        gold: class of each row.
        columns: for each class of the model, the task's class.
        points: of the even grid of lam, the ends included.
    """
    lam = [k / (points - 1) for k in range(points)]
    losses, correct, temperatures, calibrated = [], [], [], []
    ticks = iter(progress(range(points * len(encoded.batches)), f"{name} path"))

    def ticking(items: Sequence[T], label: str) -> Iterable[T]:
        return (item for item, _ in zip(items, ticks, strict=False))

    for at in lam:
        set_weights(model, {n: torch.lerp(a[n], b[n], at) if a[n].is_floating_point() else a[n] for n in a})
        raw = predict(model, encoded, ticking)
        logits, predicted = task_logits(raw, columns, task)
        exact = logits.double()
        losses.append(torch.nn.functional.cross_entropy(exact, gold, reduction="none"))
        correct.append(predicted == gold)
        temperatures.append(best_temperature(exact.numpy(), gold.numpy()))
        calibrated.append(float(torch.nn.functional.cross_entropy(exact / temperatures[-1], gold)))
    next(ticks, None)
    return make_curve(name, lam, torch.stack(losses).numpy(), torch.stack(correct).numpy(), temperatures, calibrated)


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
    record = _setting("barrier", key, task, rows) | {
        "a": named(models[0]),
        "b": named(models[1]),
        "curves": [curve.to_json() for curve in curves],
        "notes": list(notes),
        "seconds": seconds,
    }
    return record if alignment is None else record | {"alignment": dict(alignment)}


def named(checkpoint: Checkpoint) -> dict[str, str]:
    """Return how results refer to a model: by what the user typed, and by content."""
    return {"name": checkpoint.source, "hash": checkpoint.content_hash}


def _setting(kind: str, key: str, task: EvalTask, rows: Rows) -> dict[str, Any]:
    import transformers

    versions = {"merge-models": merge.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "kind": kind,
        "key": key,
        "task": task.name,
        "split": rows.split,
        "data": rows.data,
        "n": len(rows),
        "rows": rows.hash,
        "labels": list(task.labels),
        "versions": versions,
    }


def reading_notes(task: EvalTask, columns: Sequence[int], encoded: Encoded) -> list[str]:
    """Return what a reader of the scores must know."""
    notes = []
    if len(columns) > len(task.labels) > 0:
        targets = list(task.coarse.values())
        notes.append(POOLED.format(", ".join(fine for fine, to in task.coarse.items() if targets.count(to) > 1)))
    if encoded.cut:
        notes.append(CUT.format(f"{encoded.cut:,}", f"{sum(map(len, encoded.rows)):,}"))
    return notes
