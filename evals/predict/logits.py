"""Logits of a checkpoint on rows: tokenized once, sorted by length, batched by a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evals.predict.batching import MIN_BATCH_SHARE
from evals.predict.embeddings import embeds
from evals.predict.first_token import first_token_only
from evals.predict.forward import forward_logits
from evals.predict.tokens import tokenise_rows
from evals.tasks.label_names import column_of, plain
from evals.tasks.task import EvalTask, Rows
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.inputs import Batch, Encoded, batch_tokens
from merge.checkpoints.labels import is_generic
from merge.errors import TaskError
from merge.progress import track

# Tokens in a batch. Small batches stay in the cache of a CPU core: measured best between 1,024 and 2,048. A GPU needs many;
# a batch that does not fit into its memory is halved.
CPU_TOKENS, GPU_TOKENS = 1024, 65536


def token_budget(device: torch.device | str) -> int:
    """Return the budget of tokens in a batch on a device."""
    return CPU_TOKENS if torch.device(device).type == "cpu" else GPU_TOKENS


def encode_rows(checkpoint: Checkpoint, rows: Rows, budget: int = CPU_TOKENS, cache: bool = True) -> Encoded:
    """Tokenize rows with a checkpoint's tokenizer and batch them by length, padded as the tokenizer says.

    `Predictor.encode` also measures whether the model takes such batches.

    Args:
        budget: tokens in a batch, padding included.
        cache: whether tokens are read from the cache and written to it.
    Raises:
        TaskError: there are no rows; the checkpoint has no tokenizer, or one with tokens for which the model has no embedding.
    """
    return batch_tokens(tokenise_rows(checkpoint, rows, cache), budget, MIN_BATCH_SHARE)


def predict(model: Any, encoded: Encoded, label: str = "predicting") -> Float[Tensor, "rows classes"]:
    """Return the logits of every row, in the order of the rows; float32, on the CPU.

    Where it is exact, the last layer computes the first token only (`first_token`). Batches without padding need no
    attention mask: transformers omits it for scaled-dot-product attention.
    """
    if not encoded.batches:
        raise TaskError("there are no rows to predict.")
    return in_order(batch_logits(model, encoded.batches, encoded.rows, probe_batch(encoded), label), encoded)


def probe_batch(encoded: Encoded) -> Batch:
    """Return the small batch on which the short cut is tested."""
    return {name: tensor[:2] for name, tensor in encoded.batches[0].items()}


def batch_logits(
    model: Any, batches: Sequence[Batch], rows: Sequence[Sequence[int]], probe: Batch, label: str = "predicting"
) -> list[Float[Tensor, "rows classes"]]:
    """Return the logits of each batch; float32, on the CPU.

    Args:
        rows: for each batch, the indices of its rows, for errors.
    Raises:
        TaskError: the model's code failed on a row; begins with the label.
    """
    most = max((batch["input_ids"].numel() for batch in batches), default=0)
    logits = []
    small = {name: tensor.to(model.device) for name, tensor in probe.items()}
    with torch.inference_mode(), first_token_only(model, small):
        for batch, indices in zip(track(batches, label), rows, strict=True):
            try:
                parts, most = _batch_logits(model, batch, indices, most)
            except TaskError as error:
                raise TaskError(f"{label}: {error}") from error
            logits.append(torch.cat(parts))
    return [of_batch.float().cpu() for of_batch in logits]


def in_order(parts: Sequence[Float[Tensor, "rows classes"]], encoded: Encoded) -> Float[Tensor, "rows classes"]:
    """Return the logits of batches in the order of the rows."""
    ordered = torch.cat(list(parts))
    logits = torch.empty_like(ordered)
    logits[torch.tensor([row for rows in encoded.rows for row in rows])] = ordered
    return logits


def _batch_logits(model: Any, batch: Batch, indices: Sequence[int], most: int) -> tuple[list[Tensor], int]:
    """Return the logits of a batch in parts, and the largest number of tokens that may fit into the device's memory.

    A batch that the model does not take as a whole is halved, down to the row that it does not take.

    Args:
        indices: of the batch's rows among those of the task.
        most: parts with more tokens are halved, and halved again if even they do not fit.
    """
    parts, waiting = [], [(batch, indices)]
    while waiting:
        part, of_part = waiting.pop()
        rows, width = part["input_ids"].shape
        halves = [({name: tensor[at] for name, tensor in part.items()}, of_part[at]) for at in _halves(rows)]
        if rows > 1 and rows * width > most:
            waiting += halves
            continue
        try:
            parts.append(forward_logits(model, part, of_part))
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
            most = rows * width // 2
            waiting.append((part, of_part))
        except TaskError:
            if rows == 1:
                raise
            waiting += halves
    return parts, most


def _halves(rows: int) -> tuple[slice, slice]:
    """Return the second half of a batch, then the first, so that the first is popped next."""
    return slice(rows // 2, None), slice(rows // 2)


def check_finite(logits: Float[Tensor, "rows classes"], what: str, advice: str = "") -> None:
    """Stop where a logit is NaN or infinite: no class is predicted there, and no loss is defined.

    Args:
        what: the model, for the error.
        advice: what the user can do about it.
    Raises:
        TaskError: gives the number of rows.
    """
    broken = int((~torch.isfinite(logits)).any(1).sum())
    if broken:
        raise TaskError(
            f"{what}: the logits of {broken:,} of {len(logits):,} rows are NaN or infinite, so nothing is predicted there. "
            f"The model's numbers overflow when it runs. {advice or 'Leave it out, or use another checkpoint.'}"
        )


def model_labels(checkpoint: Checkpoint, stated: Sequence[str] | None) -> tuple[str, ...]:
    """Return a classifier's class names in the order of its logits: the stated ones, else those of its config.

    A model of embeddings has one number for a pair of texts, their cosine.

    Raises:
        TaskError: it is not a sequence classifier, or the number of stated names is not that of its classes.
    """
    if stated is None and embeds(checkpoint):
        return ("cosine",)
    if not checkpoint.architecture.endswith("ForSequenceClassification"):
        raise TaskError(f"{checkpoint.source} is a {checkpoint.architecture}; this task needs a sequence classifier.")
    names = checkpoint.structure.label_names
    if stated is not None and len(names) == 1:
        raise TaskError(
            f"{checkpoint.source}: it has one output, a score of each row, and --labels names classes. Leave --labels "
            "out, and score the model on a task of a number, such as stsb."
        )
    if stated is not None and len(stated) != len(names):
        raise TaskError(
            f"{checkpoint.source} has {len(names)} classes, but --labels names {len(stated)}: {', '.join(stated)}."
        )
    return tuple(stated) if stated is not None else names


def label_notes(checkpoint: Checkpoint, stated: Sequence[str] | None) -> list[str]:
    """Return a note where stated class names contradict those of a model's config; placeholders (LABEL_0) state none."""
    if stated is None or not checkpoint.architecture.endswith("ForSequenceClassification"):
        return []
    names = checkpoint.structure.label_names
    if is_generic(names) or [plain(name) for name in names] == [plain(name) for name in stated]:
        return []
    return [
        f"{checkpoint.source}: its classes are read as {', '.join(stated)} by --labels, though its config names them "
        f"{', '.join(names)}"
    ]


def matched_label_notes(models: Sequence[Checkpoint], stated: Sequence[str] | None) -> list[str]:
    """Return the notes on stated class names where models are averaged: the first is read by them, the others matched to it."""
    first, *others = models
    return label_notes(first, stated) + [
        f"{other.source}: --labels names the classes of {first.source}, to which its own "
        f"({', '.join(other.structure.label_names)}) are matched by their names"
        for other in others
        if label_notes(other, stated)
    ]


def task_logits(
    logits: Float[Tensor, "rows classes"], columns: Sequence[int], task: EvalTask
) -> tuple[Float[Tensor, "rows labels"], Tensor]:
    """Return (logits over the task's classes for the loss, predicted class of the task).

    The prediction is the argmax over the model's own classes, folded afterwards (the official HANS rule); for the
    loss, classes that fold into one are pooled by their maximum, which has the same argmax.
    """
    index = torch.tensor(columns)
    pooled = torch.stack([logits[:, index == k].amax(1) for k in range(len(task.labels))], 1)
    return pooled, index[logits.argmax(1)]


def match_labels(task: EvalTask, checkpoint: Checkpoint, stated: Sequence[str] | None) -> tuple[int, ...]:
    """Return, for each class of the checkpoint, the index of the task's class; (0,) for the one number of a regression."""
    if task.regression and embeds(checkpoint):
        return (0,)
    if embeds(checkpoint):
        raise TaskError(
            f"{checkpoint.source} embeds texts; {task.name} asks for a class, which takes a sequence classifier. Score it on a "
            "task of similarity, such as stsb."
        )
    return column_of(task, model_labels(checkpoint, stated), checkpoint.source)
