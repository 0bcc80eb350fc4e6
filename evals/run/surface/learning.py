"""What points are trained on: the rows of --train, and how far they are those that measure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.options import EvalOptions, read_rows
from merge.errors import UsageError

if TYPE_CHECKING:
    from evals.run.surface.models import Asked, Prepared
    from evals.tasks.label_names import MatchedTask
    from evals.tasks.task import EvalTask

MAX_STEPS = 1_000_000


@dataclass(frozen=True)
class Learning:
    """How points are trained.

    Attributes:
        data: file or folder of the labelled rows to train on.
        steps: for each trained point, or set of points.
        rate: of Adam at the first step; it falls linearly to 0.
        rows_a_step: rows whose mean loss a step lowers.
    """

    data: Path | None
    steps: int = 200
    rate: float = 1e-4
    rows_a_step: int = 32

    def facts(self, matched: MatchedTask, seed: int) -> list[Any]:
        """Return what decides the result of a training, for its key."""
        return [matched.rows.hash, self.steps, self.rate, self.rows_a_step, seed]


def training_rows(
    asked: Asked, task: EvalTask, learning: Learning, options: EvalOptions
) -> tuple[MatchedTask, tuple[str, ...]]:
    """Return the rows to train on, and a note where some of them are measured too.

    Raises:
        UsageError: no file is named, or a number makes no sense.
        TaskError: the rows are malformed.
    """
    from evals.tasks.label_names import MatchedTask

    if learning.data is None:
        raise UsageError(
            "--train names the labelled rows that points are trained on; --data only measures. Example: --train train.jsonl"
        )
    if not 1 <= learning.steps <= MAX_STEPS or learning.rows_a_step < 1 or not 0 < learning.rate < math.inf:
        raise UsageError(
            f"training takes 1 to {MAX_STEPS:,} steps, at least 1 row a step and a rate above 0, found {learning.steps}, "
            f"{learning.rows_a_step} and {learning.rate}."
        )
    rows = read_rows(task, replace(options, data=learning.data, limit=None))
    measured = set(asked.sets[0].rows.texts)
    shared = sum(text in measured for text in rows.texts)
    notes = (
        (
            f"{shared:,} of the {len(rows):,} rows of --train are measured too: the losses there are lower than on new rows",
        )
        if shared
        else ()
    )
    return MatchedTask(task, rows, asked.sets[0].columns, asked.models[0]), notes


def check_trainable(ready: Prepared) -> None:
    """Stop where a model cannot be trained by its labelled rows.

    Raises:
        UsageError: it embeds texts; or several processes share the work.
    """
    if ready.predictor.embeds:
        raise UsageError(
            f"{ready.checkpoint.source} embeds texts; points are trained on the labels of a model with a head."
        )
    if ready.predictor.workers is not None:
        raise UsageError("points are trained in one process. Start the command without torchrun.")
