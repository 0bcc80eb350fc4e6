"""EvalTask: where a task's rows come from and what its labels are called; Rows: the rows as read."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merge.errors import TaskError

# What each configuration of evals.scores.glue computes, named as the official GLUE metric names it.
METRICS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews_correlation",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearmanr"),
    **dict.fromkeys(("sst2", "mnli", "mnli_matched", "mnli_mismatched", "qnli", "rte", "wnli", "hans"), ("accuracy",)),
}


@dataclass(frozen=True)
class Rows:
    """Labelled texts of one split.

    Attributes:
        texts: (text,) or (text, text_pair) of each row.
        gold: index into the task's labels, one per row; the number itself where the task has none (regression).
        labels: the task's class names in the order of `gold`.
        data: one phrase on where the rows came from.
        ids: what each row is called in prediction files.
        extra: what a task's own scores need, one per row (HANS pairs).
    """

    texts: tuple[tuple[str, ...], ...]
    gold: tuple[int, ...] | tuple[float, ...]
    labels: tuple[str, ...]
    data: str
    split: str
    ids: tuple[str, ...]
    extra: tuple[Any, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def hash(self) -> str:
        """SHA-256 of all that scores depend on, texts, gold labels and `extra`: the same rows, however they were read."""
        text = repr((self.texts, self.gold, self.labels, self.extra)).encode()
        return hashlib.sha256(text).hexdigest()

    def sample(self, count: int | None, seed: int) -> Rows:
        """Return `count` rows drawn at random without replacement, in their order; all rows when None."""
        if count is None or count >= len(self):
            return self
        kept = sorted(random.Random(seed).sample(range(len(self)), count))

        def pick(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[i] for i in kept) if values else ()

        return replace(
            self,
            texts=pick(self.texts),
            gold=pick(self.gold),
            ids=pick(self.ids),
            extra=pick(self.extra),
            data=f"{self.data}; {count:,} of {len(self):,} rows drawn with seed {seed}",
        )


@dataclass(frozen=True)
class EvalTask:
    """A task: its class names, and how its rows are read.

    Attributes:
        labels: class names in the task's integer order; none where the task is regression.
        read: from a path (None: the task's own source) and a seed to rows.
        metric: the configuration of evals.scores.glue, a key of METRICS.
        coarse: fine label -> task label, for models that tell more classes apart (three-way NLI on two-way HANS).
        aliases: another name -> a task label or a fine one.
        source: where rows come from when no path is given, for people to read.
    """

    name: str
    labels: tuple[str, ...]
    read: Callable[[Path | None, int], Rows]
    metric: str
    coarse: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    source: str = ""

    @property
    def regression(self) -> bool:
        """Whether the task's gold is a number and not a class."""
        return not self.labels


def class_names(
    labels: Sequence[str], coarse: Mapping[str, str] | None = None, aliases: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Return every name a class goes by, plain, with the index of the class in `labels`."""
    names = {plain(name): k for k, name in enumerate(labels)}
    names |= {plain(fine): names[plain(label)] for fine, label in (coarse or {}).items()}
    return names | {plain(alias): names[plain(name)] for alias, name in (aliases or {}).items()}


def column_of(task: EvalTask, model_labels: Sequence[str], source: str) -> tuple[int, ...]:
    """Return, for each class of the model, the task's class it stands for; (0,) for a regression task's one output.

    Labels are matched by name, without regard to case and to how words are joined (not_entailment, non-entailment), and
    by the task's aliases; models that tell more classes apart are folded by the task's `coarse` table. The reverse is
    never done: gold labels are not folded for a model that tells fewer classes apart.

    Raises:
        TaskError: a label means nothing to the task, or a task's class has no label; placeholder names say nothing.
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
    found = [names.get(plain(name)) for name in model_labels]
    distinct = {same.get(plain(name), plain(name)) for name in model_labels}
    if None in found or len(distinct) != len(model_labels) or set(found) != set(range(len(task.labels))):
        raise TaskError(_misfit(task, model_labels, source))
    return tuple(k for k in found if k is not None)


def _misfit(task: EvalTask, model_labels: Sequence[str], source: str) -> str:
    """Return what is said of a model whose labels are not those of the task."""
    expected = ", ".join(task.labels) + (f" (or {', '.join(task.coarse)})" if task.coarse else "")
    said = f"{source}: its labels {', '.join(model_labels)} are not those of {task.name}: {expected}."
    placeholder = any(name.upper().startswith("LABEL_") for name in model_labels)
    if len(model_labels) < len(task.labels) and not placeholder:
        return (
            f"{said} It tells {len(model_labels)} classes apart where the task has {len(task.labels)}, and gold labels are "
            "not folded for it. Score it on a task with its classes, or fold the gold labels in a task file of your own "
            "(labels, coarse)."
        )
    hint = "Placeholder names say nothing: give" if placeholder else "Give"
    example = task.coarse if len(task.coarse) == len(model_labels) else task.labels
    return f"{said} {hint} its class names in the order of its logits, such as --labels {','.join(example)}"


def plain(name: str) -> str:
    """Return a label without what says nothing: case, and how words are joined; not_x and non-x are one."""
    words = re.sub(r"^(not|non)[-_ ]+(?=\w)", "non", name.strip().casefold())
    joined = re.sub(r"(?<=[^\W_])[-_ ]+(?=[^\W_])", "", words)  # between words only: -1 is not 1
    return "nonentailment" if joined == "notentailment" else joined
