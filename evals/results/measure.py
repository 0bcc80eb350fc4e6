"""Scores of one model on rows, with their intervals and its predictions: a record of results.json."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import merge
from evals.heuristics.scores import HANS_LO
from evals.heuristics.scores import score as hans_table
from evals.predict.embeddings import embedding_facts
from evals.predict.logits import check_finite, label_notes, match_labels, model_labels, task_logits
from evals.predict.predictor import Predictor, make_predictor, precision_change
from evals.predict.regression import regression_losses, scale_notes
from evals.results.predictions import (
    PredictionTable,
    has_predictions,
    predicted_ids,
    predictions_file,
    write_predictions_table,
)
from evals.scores.intervals import proportion_interval, score_intervals
from evals.scores.label_orders import order_notes
from evals.tasks.task import EvalTask, Rows
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.inputs import Encoded
from merge.disk.cache import cache_key

POOLED = "classes that fold into one ({}) are pooled by their maximum in the loss; accuracy folds after the argmax"
CONSTANT = "every row was given the same prediction: {}"
# Numbers that differ by less than this share of the largest are equal but for the rounding of float32.
LEAST_SPREAD = 1e-6
NEARLY_CONSTANT = "every row was given the same prediction but for rounding, {}: its correlations are those of rounding"
ROUNDED = (
    "computed in {}: {} of {} rows, drawn at random, are decided otherwise than in float32; logits differ by up to {}"
)
PRECISION_ROWS = 500  # on which half precision is compared with float32
CUT = "only the start was read of rows longer than the model takes: {} of {}"
CUT_TO = "only {} tokens were read (--max-length) of rows that are longer: {} of {}"
FULL_PRECISION = "Compute in more precision: --dtype float32."
# Counts the changes of how rows are read and scored: results of before have another key, and are computed anew.
READING = 2


def record_key(kind: str, *parts: Any) -> str:
    """Return the key of a result: a hash of everything that determines it."""
    return f"{kind}-{cache_key(READING, *parts)[:24]}"


def score_model(
    checkpoint: Checkpoint,
    task: EvalTask,
    rows: Rows,
    stated: Sequence[str] | None,
    folder: Path | str | None = None,
    seed: int = 0,
    predictor: Predictor | None = None,
) -> tuple[dict[str, Any], PredictionTable]:
    """Return the scores record of one model and the table of its predictions.

    Args:
        folder: of results.json; the table is written into it, and the record names the file.
        seed: of the bootstrap draws.
        predictor: with the checkpoint's weights; by default one is made, in float32 on the CPU.
    """
    from evals.scores.glue import task_scores  # loads scikit-learn, which a barrier does not need

    begun = time.monotonic()
    columns = match_labels(task, checkpoint, stated)
    predictor = predictor or make_predictor(checkpoint)
    encoded = predictor.encode(rows, checkpoint)
    raw = predictor.logits(encoded, f"predicting {task.name} with {checkpoint.source}")
    dtype = predictor.model.dtype
    check_finite(raw, checkpoint.source, "" if dtype == torch.float32 else FULL_PRECISION)
    loss, predicted = judge(raw, columns, task, rows, checkpoint)
    key = score_key(checkpoint, task, rows, stated, dtype, predictor.max_length)
    record = setting("scores", key, task, rows) | {
        "model": named(checkpoint),
        "seed": seed,
        **({} if predictor.max_length is None else {"max_length": predictor.max_length}),
        **({} if stated is None else {"stated": list(stated)}),
        "scores": task_scores(task.metric, predicted.tolist(), rows.gold),
        "intervals": score_intervals(task.metric, predicted.tolist(), rows.gold, seed),
    }
    if task.name == "hans":
        record |= _hans(record, [task.labels[k] for k in predicted.tolist()], rows)
    record["scores"] = {**record["scores"], "loss": float(loss.mean())}
    names = model_labels(checkpoint, stated)
    notes = [
        *label_notes(checkpoint, stated),
        *scale_notes(task, checkpoint),
        *reading_notes(task, columns, encoded, predictor.max_length),
        *_constant_note(predicted, task),
    ]
    orders = order_notes(task, names, columns, raw.argmax(1).tolist(), [int(k) for k in rows.gold])
    record["notes"] = [*notes, *orders]
    if dtype != torch.float32:
        record |= {"dtype": _dtype_name(dtype)}
        record["notes"] = [*record["notes"], _precision_note(checkpoint, rows, predictor, seed)]
    record["seconds"] = time.monotonic() - begun
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
    if folder is not None:
        write_predictions_table(folder, table)
        record["predictions"] = predictions_file(record["key"])
    return record, table


def _precision_note(checkpoint: Checkpoint, rows: Rows, predictor: Predictor, seed: int) -> str:
    """Return a note of how half precision changes predictions, measured on rows drawn at random."""
    model = predictor.model
    setting = (PRECISION_ROWS, seed, model.device, predictor.cache, predictor.max_length)
    change = precision_change(checkpoint, rows, model.dtype, *setting)
    return ROUNDED.format(_dtype_name(model.dtype), f"{change.changed:,}", f"{change.rows:,}", f"{change.largest:.2g}")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def judge(
    raw: Tensor, columns: Sequence[int], task: EvalTask, rows: Rows, checkpoint: Checkpoint | None = None
) -> tuple[Tensor, Tensor]:
    """Return (loss, prediction) of every row: cross-entropy and class, or squared error and number for regression.

    Args:
        raw: logits of the model's classes, shape (rows, classes).
        columns: for each class of the model, the index of the task's class.
        checkpoint: the model; its folder states what its output means on a regression task.
    """
    if task.regression:
        return regression_losses(raw, task, rows, checkpoint)
    logits, predicted = task_logits(raw, columns, task)
    gold = torch.tensor(rows.gold, dtype=torch.int64)
    return torch.nn.functional.cross_entropy(logits.double(), gold, reduction="none"), predicted


def _hans(record: Mapping[str, Any], labels: Sequence[str], rows: Rows) -> dict[str, Any]:
    """Return the fields that HANS adds to a record: its table, and HANS-LO as a score where rows are in that cell."""
    table = hans_table(rows.extra, dict(zip(rows.ids, labels, strict=True)))
    added: dict[str, Any] = {"hans": table.to_json()}
    if count := table.cell_counts.get(HANS_LO):
        interval = proportion_interval(round(table.hans_lo * count), count)
        added["scores"] = {**record["scores"], "hans_lo": table.hans_lo}
        added["intervals"] = {**record["intervals"], "hans_lo": interval.to_json()}
    return added


def _constant_note(predicted: Tensor, task: EvalTask) -> list[str]:
    """Return a note where all of several rows have the same prediction: no score of such a model means much."""
    if len(predicted) < 2:
        return []
    if bool((predicted == predicted[0]).all()):
        return [CONSTANT.format(f"{float(predicted[0]):g}" if task.regression else task.labels[int(predicted[0])])]
    if task.regression and float(predicted.max() - predicted.min()) < LEAST_SPREAD * float(predicted.abs().max()):
        return [NEARLY_CONSTANT.format(f"{float(predicted[0]):g}")]
    return []


def score_key(
    checkpoint: Checkpoint,
    task: EvalTask,
    rows: Rows,
    stated: Sequence[str] | None,
    dtype: torch.dtype = torch.float32,
    max_length: int | None = None,
) -> str:
    """Return the key of scores, which depend on weights, rows, the matching of classes, the dtype and the longest row read."""
    columns = match_labels(task, checkpoint, stated)
    rounded = () if dtype == torch.float32 else (_dtype_name(dtype),)
    cut = () if max_length is None else (max_length,)
    parts: tuple[Any, ...] = (task.name, task.metric, rows.hash, checkpoint.content_hash, columns)
    if task.regression:
        parts = (*parts, embedding_facts(checkpoint))
    return record_key("scores", *parts, *rounded, *cut)


def is_of_run(record: Mapping[str, Any], rows: Rows, seed: int, folder: Path | str | None) -> bool:
    """Return whether a scores record with the right key is all that a run would write.

    The seed decides the intervals that are drawn, and the rows on which half precision is compared; the ids of the rows stand
    beside their predictions.
    """
    methods = [str((each or {}).get("method")) for each in (record.get("intervals") or {}).values()]
    drawn = "dtype" in record or any(method.startswith("bootstrap") for method in methods)
    if drawn and record.get("seed") != seed:
        return False
    return folder is None or (has_predictions(folder, record) and predicted_ids(folder, record) in (None, rows.ids))


def named(checkpoint: Checkpoint) -> dict[str, str]:
    """Return how results refer to a model: the name as the user typed it, and the hash of its content."""
    return {"name": checkpoint.source, "hash": checkpoint.content_hash}


def setting(kind: str, key: str, task: EvalTask, rows: Rows) -> dict[str, Any]:
    """Return the fields that records of every kind have: the task, the rows and the versions of libraries."""
    import transformers

    # Numbers for pairs of texts: a model card files them under sentence similarity.
    similarity = task.regression and all(len(text) == 2 for text in rows.texts)
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
        **({"similarity": True} if similarity else {}),
        "versions": versions,
    }


def reading_notes(task: EvalTask, columns: Sequence[int], encoded: Encoded, max_length: int | None = None) -> list[str]:
    """Return notes on how classes were pooled, and on how rows were cut and batched."""
    notes = list(encoded.notes)
    if len(columns) > len(task.labels) > 0:
        targets = list(task.coarse.values())
        notes.append(POOLED.format(", ".join(fine for fine, to in task.coarse.items() if targets.count(to) > 1)))
    if encoded.cut:
        counts = f"{encoded.cut:,}", f"{sum(map(len, encoded.rows)):,}"
        notes.append(CUT.format(*counts) if max_length is None else CUT_TO.format(f"{max_length:,}", *counts))
    return notes
