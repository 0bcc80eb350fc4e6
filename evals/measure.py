"""Measuring models on rows: one model's scores, and the loss along the line between two; each a record of results.json."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

import merge
from evals.hans_scores import score as hans_table
from evals.paths.line import Curve, make_curve
from evals.predict import encode_rows, match_labels, predict, task_logits
from evals.task import EvalTask, Rows
from merge.bases import finite_tensors
from merge.checkpoint import Checkpoint
from merge.inputs import Encoded
from merge.model import build, set_weights
from merge.progress import Progress, silent

T = TypeVar("T")

POOLED = "classes that fold into one ({}) are pooled by their maximum in the loss; accuracy folds after the argmax"


def record_key(kind: str, *parts: Any) -> str:
    """Return the key of a result: a hash of everything that decides it."""
    return f"{kind}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]}"


def score_model(
    checkpoint: Checkpoint, task: EvalTask, rows: Rows, stated: Sequence[str] | None, progress: Progress = silent
) -> dict[str, Any]:
    """Return the scores record of one model: loss, accuracy, and the HANS table where the rows are HANS pairs."""
    from evals.scores import GlueScores

    begun = time.monotonic()
    columns = match_labels(task, checkpoint, stated)
    encoded = encode_rows(checkpoint, rows)
    model = build_written(checkpoint)
    logits, predicted = task_logits(
        predict(model, encoded, progress, f"predicting {task.name} with {checkpoint.source}"), columns, task
    )
    gold = torch.tensor(rows.gold)
    scores = GlueScores(config_name=task.name).compute(predictions=predicted.tolist(), references=rows.gold)
    loss = float(torch.nn.functional.cross_entropy(logits.double(), gold))
    record = _setting("scores", score_key(checkpoint, task, rows, stated), task, rows) | {
        "model": named(checkpoint),
        "scores": {**scores, "loss": loss},
        "notes": _notes(task, columns, encoded, [checkpoint.source]),
        "seconds": time.monotonic() - begun,
    }
    if task.name == "hans":
        labels = [task.labels[k] for k in predicted.tolist()]
        table = hans_table(rows.extra, dict(zip(rows.ids, labels, strict=True)))
        record["hans"] = table.to_json()
    return record


def score_key(checkpoint: Checkpoint, task: EvalTask, rows: Rows, stated: Sequence[str] | None) -> str:
    """Return the key under which a model's scores are stored."""
    return record_key("scores", task.name, rows.hash, checkpoint.content_hash, stated and list(stated))


def build_written(checkpoint: Checkpoint) -> Any:
    """Return a checkpoint's model in float32."""
    tensors = {checkpoint.written_name(name): tensor for name, tensor in finite_tensors(checkpoint).items()}
    return build(checkpoint.config, tensors, torch.float32)


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
    """Return the curve of losses along (1 - lam) a + lam b.

    Args:
        a, b: float32 tensors by written name; b in the basis and label order of a.
        model: a skeleton of the architecture; its weights are overwritten.
        gold: class of each row.
        columns: for each class of the model, the task's class.
        points: of the even grid of lam, the ends included.
    """
    lam = [k / (points - 1) for k in range(points)]
    losses, correct = [], []
    ticks = iter(progress(range(points * len(encoded.batches)), f"{name} path"))

    def ticking(items: Sequence[T], label: str) -> Iterable[T]:
        return (item for item, _ in zip(items, ticks, strict=False))

    for at in lam:
        set_weights(model, {n: torch.lerp(a[n], b[n], at) if a[n].is_floating_point() else a[n] for n in a})
        raw = predict(model, encoded, ticking)
        logits, predicted = task_logits(raw, columns, task)
        losses.append(torch.nn.functional.cross_entropy(logits.double(), gold, reduction="none"))
        correct.append(predicted == gold)
    next(ticks, None)
    return make_curve(name, lam, torch.stack(losses).numpy(), torch.stack(correct).numpy())


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
        "labels": list(task.labels),
        "versions": versions,
    }


def _notes(task: EvalTask, columns: Sequence[int], encoded: Encoded, sources: Sequence[str]) -> list[str]:
    """Return what a reader of the scores must know."""
    notes = []
    if len(columns) > len(task.labels):
        notes.append(POOLED.format(", ".join(task.coarse)))
    if encoded.cut:
        notes.append(f"{encoded.cut} rows are longer than {', '.join(sources)} take; only their start was read")
    return notes
