"""Matching of a task's classes to a model's labels, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evals.tasks.task import EvalTask, Rows
from merge.errors import TaskError

if TYPE_CHECKING:
    from merge.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True)
class MatchedTask:
    """A task, its rows, and its classes matched to those of a model.

    Attributes:
        columns: for each class of the model, the index of the task's class, as `column_of` returns it.
        model: whose settings decide what its output means on a regression task.
    """

    task: EvalTask
    rows: Rows
    columns: tuple[int, ...]
    model: Checkpoint | None = None


def class_names(
    labels: Sequence[str], coarse: Mapping[str, str] | None = None, aliases: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Return every name of a class, normalised by `plain`, with the index of the class in `labels`."""
    names = {plain(name): k for k, name in enumerate(labels)}
    names |= {plain(fine): names[plain(label)] for fine, label in (coarse or {}).items()}
    return names | {plain(alias): names[plain(name)] for alias, name in (aliases or {}).items()}


def column_of(task: EvalTask, model_labels: Sequence[str], source: str) -> tuple[int, ...]:
    """Return, for each class of the model, the index of the task's class; (0,) for the one output of a regression task.

    Labels are matched by name, ignoring case and how words are joined (not_entailment, non-entailment), and by the task's
    aliases; a model with more classes is folded by the task's `coarse` table. The reverse is never done: gold labels are not
    folded for a model with fewer classes.

    Raises:
        TaskError: a label is not one of the task's, or a task's class has no label; placeholder names (LABEL_0) match none.
    """
    if task.regression:
        if len(model_labels) != 1:
            raise TaskError(
                f"{source}: {task.name} asks for a number, which takes a model with one output; found "
                f"{len(model_labels)} classes: {', '.join(model_labels)}. Score it on a task with its classes."
            )
        return (0,)
    names = class_names(task.labels, task.coarse, task.aliases)
    same = {plain(alias): plain(name) for alias, name in task.aliases.items()}
    columns = [names.get(plain(name)) for name in model_labels]
    distinct = {same.get(plain(name), plain(name)) for name in model_labels}
    if None in columns or len(distinct) != len(model_labels) or set(columns) != set(range(len(task.labels))):
        raise TaskError(_misfit(task, model_labels, source))
    return tuple(k for k in columns if k is not None)


def _misfit(task: EvalTask, model_labels: Sequence[str], source: str) -> str:
    """Return the error message for a model whose labels are not those of the task."""
    expected = ", ".join(task.labels) + (f" (or {', '.join(task.coarse)})" if task.coarse else "")
    if len(model_labels) == 1:
        return (
            f"{source}: it has one output, a score of each row, and {task.name} asks for one of its classes: {expected}. "
            "Score it on a task of a number, such as stsb, or in a task file of your own (regression: true)."
        )
    message = f"{source}: its labels {', '.join(model_labels)} are not those of {task.name}: {expected}."
    placeholder = any(name.upper().startswith("LABEL_") for name in model_labels)
    if len(model_labels) < len(task.labels) and not placeholder:
        return (
            f"{message} The model has {len(model_labels)} classes and the task {len(task.labels)}, and gold labels are not "
            "folded. Score it on a task with its classes, or fold the gold labels in a task file of your own "
            "(labels, coarse)."
        )
    hint = "These are placeholders: give" if placeholder else "Give"
    example = task.coarse if len(task.coarse) == len(model_labels) else task.labels
    return f"{message} {hint} its class names in the order of its logits, such as --labels {','.join(example)}"


def plain(name: str) -> str:
    """Return a label normalised for comparison: case and the joining of words are dropped; not_x and non-x become nonx."""
    words = re.sub(r"^(not|non)[-_ ]+(?=\w)", "non", name.strip().casefold())
    joined = re.sub(r"(?<=[^\W_])[-_ ]+(?=[^\W_])", "", words)  # between words only: -1 is not 1
    return "nonentailment" if joined == "notentailment" else joined
