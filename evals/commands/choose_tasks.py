"""Which tasks are scored, on which rows, and for which models: one task, several by name, or all that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.errors import TaskError, UsageError

if TYPE_CHECKING:
    from evals.tasks.task import EvalTask, Rows
    from merge.checkpoints.checkpoint import Checkpoint

ALL = "all"
# What the HANS authors' file is called in a folder of many tasks; without it HANS is generated, as ever.
HANS_FILES = ("heuristics_evaluation_set.txt", "heuristics_evaluation_set.txt.gz")


@dataclass(frozen=True)
class Chosen:
    """A task, its rows and the models that it is scored for."""

    task: EvalTask
    rows: Rows
    checkpoints: tuple[Checkpoint, ...]


def choose(
    tasks: Sequence[EvalTask],
    checkpoints: Sequence[Checkpoint],
    stated: Sequence[str] | None,
    options: Mapping[str, Any],
    everything: bool,
) -> tuple[list[Chosen], list[str]]:
    """Return what is scored, and what is left out and why.

    Args:
        stated: class names of every model, if they were given.
        options: data, seed and limit.
        everything: whether tasks were asked for by `all`: one that does not fit a model, or has no rows in the folder, is
            left out; one that was named must fit every model.
    Raises:
        TaskError: a named task does not fit a model; a model fits none; rows are malformed; nothing is left.
    """
    if everything:
        _check_each_fits_one(tasks, checkpoints, stated)
    chosen: list[tuple[EvalTask, list[Checkpoint]]] = []
    left: list[str] = []
    for task in tasks:
        refused = {checkpoint.source: _misfit(task, checkpoint, stated) for checkpoint in checkpoints}
        fitting = [checkpoint for checkpoint in checkpoints if refused[checkpoint.source] is None]
        if len(fitting) < len(checkpoints):
            error = next(error for error in refused.values() if error is not None)
            if not everything:
                raise error
            others = ", ".join(source for source, error in refused.items() if error is not None)
            left.append(f"{task.name} is left out for {others}: it asks for {', '.join(task.labels) or 'a number'}")
        if fitting and everything and not _has_rows(task, options["data"]):
            left.append(f"{task.name} is left out: {options['data']} holds no rows of it")
        elif fitting:
            chosen.append((task, fitting))
    if not chosen:
        raise TaskError(f"no task is left to score: {'; '.join(left)}")
    many = len(tasks) > 1
    return [Chosen(task, _rows(task, options, many), tuple(fitting)) for task, fitting in chosen], left


def _misfit(task: EvalTask, checkpoint: Checkpoint, stated: Sequence[str] | None) -> TaskError | UsageError | None:
    """Return the error that says why a model cannot be scored on a task, None if it can."""
    from evals.predict.logits import match_labels

    if task.regression and stated is not None:
        return UsageError(f"--labels names classes; {task.name} asks for a number and has none. Leave it out.")
    try:
        match_labels(task, checkpoint, stated)
    except TaskError as error:
        return error
    return None


def _check_each_fits_one(
    tasks: Sequence[EvalTask], checkpoints: Sequence[Checkpoint], stated: Sequence[str] | None
) -> None:
    """Refuse a model that fits none of the tasks: it was not meant."""
    for checkpoint in checkpoints:
        refusals = [_misfit(task, checkpoint, stated) for task in tasks]
        if refusals and all(refusals):
            raise TaskError(
                f"{checkpoint.source} fits none of the {len(tasks)} tasks; of {tasks[0].name}: {refusals[0]}"
            )


def _rows(task: EvalTask, options: Mapping[str, Any], many: bool) -> Rows:
    data: Path | None = options["data"]
    if many and data is not None:
        if not data.is_dir():
            raise UsageError(
                f"--data {data}: several tasks are read from a folder of their folders, such as {data}/{task.name}; "
                "this is none. Score one task at a time, or give the folder."
            )
        data = _hans_file(data) if task.name == "hans" else data
    return task.read(data, options["seed"]).sample(options["limit"], options["seed"])


def _has_rows(task: EvalTask, data: Path | None) -> bool:
    """Say whether a folder of many tasks holds this one; without a folder each has its own source."""
    from evals.tasks.table import TaskTable

    if data is None or not data.is_dir() or not isinstance(task.read, TaskTable):
        return True
    return task.read.find(data) is not None


def _hans_file(folder: Path) -> Path | None:
    places = (place / name for place in (folder, folder / "hans") for name in HANS_FILES)
    return next((place for place in places if place.is_file()), None)
