"""Choosing the tasks of a scoring run, the rows of each, and the models that it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evals.run.options import EvalOptions, read_rows
from merge.errors import TaskError, UsageError

if TYPE_CHECKING:
    from evals.tasks.task import EvalTask, Rows
    from merge.checkpoints.checkpoint import Checkpoint

ALL = "all"
# Names of the HANS authors' file in a folder of many tasks; without it HANS is generated.
HANS_FILES = ("heuristics_evaluation_set.txt", "heuristics_evaluation_set.txt.gz")


@dataclass(frozen=True)
class ChosenTask:
    """A task, its rows and the models that it is scored for."""

    task: EvalTask
    rows: Rows
    checkpoints: tuple[Checkpoint, ...]


def choose_tasks(
    tasks: Sequence[EvalTask], checkpoints: Sequence[Checkpoint], options: EvalOptions, all_tasks: bool
) -> tuple[list[ChosenTask], list[str]]:
    """Return the tasks to score, and a line for each task that is left out.

    Args:
        all_tasks: whether the user asked for `all`: a task that does not fit a model, or has no rows in the folder, is then
            left out; one that was named must fit every model.
    Raises:
        TaskError: a named task does not fit a model; a model fits none; rows are malformed; nothing is left.
    """
    if all_tasks:
        _check_each_fits_a_task(tasks, checkpoints, options.labels)
    chosen: list[tuple[EvalTask, list[Checkpoint]]] = []
    left_out: list[str] = []
    for task in tasks:
        misfits = {checkpoint.source: _misfit(task, checkpoint, options.labels) for checkpoint in checkpoints}
        fitting = [checkpoint for checkpoint in checkpoints if misfits[checkpoint.source] is None]
        if len(fitting) < len(checkpoints):
            error = next(error for error in misfits.values() if error is not None)
            if not all_tasks:
                raise error
            others = ", ".join(source for source, error in misfits.items() if error is not None)
            classes = f"its classes are {', '.join(task.labels)}" if task.labels else "it asks for a number"
            left_out.append(f"{task.name} is left out for {others}: {classes}")
        if fitting and all_tasks and not _has_rows(task, options.data):
            left_out.append(f"{task.name} is left out: {options.data} has no rows for it")
        elif fitting:
            chosen.append((task, fitting))
    if not chosen:
        raise TaskError(f"no task is left to score: {'; '.join(left_out)}")
    several = len(tasks) > 1
    return [ChosenTask(task, _rows(task, options, several), tuple(fitting)) for task, fitting in chosen], left_out


def _misfit(task: EvalTask, checkpoint: Checkpoint, labels: Sequence[str] | None) -> TaskError | UsageError | None:
    """Return the error for a model that cannot be scored on a task, None if it can."""
    from evals.predict.logits import match_labels

    if task.regression and labels is not None:
        return UsageError(
            f"--labels names classes; {task.name} asks for a number and has no classes. Leave --labels out."
        )
    try:
        match_labels(task, checkpoint, labels)
    except TaskError as error:
        return error
    return None


def _check_each_fits_a_task(
    tasks: Sequence[EvalTask], checkpoints: Sequence[Checkpoint], labels: Sequence[str] | None
) -> None:
    """Stop where a model fits none of the tasks: it was probably not meant to be scored."""
    for checkpoint in checkpoints:
        misfits = [_misfit(task, checkpoint, labels) for task in tasks]
        if misfits and all(misfits):
            raise TaskError(
                f"{checkpoint.source} fits none of the {len(tasks)} tasks; of {tasks[0].name}: {misfits[0]}"
            )


def _rows(task: EvalTask, options: EvalOptions, several: bool) -> Rows:
    """Return the rows of a task; for several tasks, --data is a folder with a folder for each."""
    if several and options.data is not None:
        if not options.data.is_dir():
            raise UsageError(
                f"--data {options.data} is not a folder; several tasks are read from a folder that holds one for each, such as "
                f"{options.data}/{task.name}. Score one task at a time, or give the folder."
            )
        if task.name == "hans":
            options = replace(options, data=_hans_file(options.data))
    return read_rows(task, options)


def _has_rows(task: EvalTask, data: Path | None) -> bool:
    """Return whether a folder of several tasks holds rows of this one; without a folder each task has its own source."""
    from evals.tasks.table import TaskTable

    if data is None or not data.is_dir() or not isinstance(task.read, TaskTable):
        return True
    return task.read.find(data) is not None


def _hans_file(folder: Path) -> Path | None:
    """Return the HANS authors' file of a folder, None if there is none."""
    candidates = (parent / name for parent in (folder, folder / "hans") for name in HANS_FILES)
    return next((path for path in candidates if path.is_file()), None)
