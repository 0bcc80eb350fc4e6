"""The number that a model predicts, and its squared error: a classifier's one output, or the cosine of two embeddings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evals.predict.embeddings import embeds
from merge.checkpoints.sentence_transformers import pipeline_facts
from merge.errors import TaskError

if TYPE_CHECKING:
    from evals.tasks.task import EvalTask, Rows
    from merge.checkpoints.checkpoint import Checkpoint

SCALED = "{}: its predictions are {}, so the loss is the squared distance from the gold number, scaled from {:g}..{:g} to 0..1"


def regression_losses(
    raw: Float[Tensor, "rows 1"], task: EvalTask, rows: Rows, checkpoint: Checkpoint | None = None
) -> tuple[Tensor, Tensor]:
    """Return (squared error, number) of every row, in float64.

    A cross-encoder's score goes through the activation that its folder states. A sigmoid or a cosine lies between 0 and 1, so
    the gold number of a task with a scale is brought there too.
    """
    predicted, name = raw[:, 0].double(), activation(checkpoint)
    if name is not None:
        predicted = getattr(nn, name)()(predicted)
    gold = torch.tensor(rows.gold, dtype=torch.float64)
    if _is_unit(checkpoint) and math.isfinite(task.scale[1]):
        low, high = task.scale
        gold = (gold - low) / (high - low)
    return (predicted - gold) ** 2, predicted


def activation(checkpoint: Checkpoint | None) -> str | None:
    """Return the activation on a cross-encoder's scores; None where there is none.

    Raises:
        TaskError: it is none of torch.nn.
    """
    name = None if checkpoint is None else (pipeline_facts(checkpoint) or {}).get("activation_fn")
    if name in (None, "Identity"):
        return None
    kind = getattr(nn, str(name), None)
    if checkpoint is not None and not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TaskError(f"{checkpoint.source}: the activation of its scores, {name}, is none of torch.nn.")
    return str(name)


def _is_unit(checkpoint: Checkpoint | None) -> bool:
    return checkpoint is not None and (embeds(checkpoint) or activation(checkpoint) == "Sigmoid")


def scale_notes(task: EvalTask, checkpoint: Checkpoint) -> list[str]:
    """Return a note where predictions are not numbers on the task's scale."""
    if not task.regression or not _is_unit(checkpoint) or not math.isfinite(task.scale[1]):
        return []
    kind = "cosines of embeddings" if embeds(checkpoint) else "sigmoids, as its folder states"
    return [SCALED.format(checkpoint.source, kind, *task.scale)]
