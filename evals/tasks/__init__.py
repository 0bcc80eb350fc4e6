"""Evaluation tasks, one table each; TASKS lists them."""

from __future__ import annotations

from evals.task import EvalTask
from evals.tasks.glue import MNLI, SST2
from evals.tasks.hans import HANS
from merge.errors import UsageError, nearest

TASKS: dict[str, EvalTask] = {task.name: task for task in (MNLI, SST2, HANS)}


def find_task(name: str) -> EvalTask:
    """Return the task of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}.{nearest(name, TASKS)}")
    return TASKS[name]
