"""EvalTask: where a task's rows come from and what its labels are called; Rows: the rows as read."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merge.errors import TaskError


@dataclass(frozen=True)
class Rows:
    """Labelled texts of one split.

    Attributes:
        texts: (text,) or (text, text_pair) of each row.
        gold: index into the task's labels, one per row.
        labels: the task's class names in the order of `gold`.
        data: one phrase on where the rows came from.
        ids: what each row is called in prediction files.
        extra: what a task's own scores need, one per row (HANS pairs).
    """

    texts: tuple[tuple[str, ...], ...]
    gold: tuple[int, ...]
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
        labels: class names in the task's integer order.
        read: from a path (None: the task's own source) and a seed to rows.
        coarse: fine label -> task label, for models that tell more classes apart (three-way NLI on two-way HANS).
    """

    name: str
    labels: tuple[str, ...]
    read: Callable[[Path | None, int], Rows]
    coarse: dict[str, str] = field(default_factory=dict)


def column_of(task: EvalTask, model_labels: Sequence[str], source: str) -> tuple[int, ...]:
    """Return, for each class of the model, the task's class it stands for.

    Labels are matched by name, without regard to case and to how words are joined (not_entailment, non-entailment);
    models that tell more classes apart are folded by the task's `coarse` table.

    Raises:
        TaskError: a label means nothing to the task, or a task's class has no label; placeholder names say nothing.
    """
    known = {_plain(name): k for k, name in enumerate(task.labels)}
    coarse = {_plain(fine): known[_plain(label)] for fine, label in task.coarse.items()}
    found = [known.get(_plain(name), coarse.get(_plain(name))) for name in model_labels]
    unknown = [name for name, k in zip(model_labels, found, strict=True) if k is None]
    if unknown or len({_plain(n) for n in model_labels}) != len(model_labels) or set(found) != set(known.values()):
        placeholder = any(n.upper().startswith("LABEL_") for n in model_labels)
        hint = "Placeholder names say nothing: give" if placeholder else "Give"
        expected = ", ".join(task.labels) + (f" (or {', '.join(task.coarse)})" if task.coarse else "")
        example = task.coarse if len(task.coarse) == len(model_labels) else task.labels
        raise TaskError(
            f"{source}: its labels {', '.join(model_labels)} are not those of {task.name}: {expected}. "
            f"{hint} its class names in the order of its logits, such as --labels {','.join(example)}"
        )
    return tuple(k for k in found if k is not None)


def _plain(name: str) -> str:
    plain = name.casefold().replace("-", "").replace("_", "").replace(" ", "")
    return "nonentailment" if plain == "notentailment" else plain
