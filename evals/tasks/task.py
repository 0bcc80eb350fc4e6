"""EvalTask: the class names of a task and the function that reads its rows; Rows: the rows."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# The scores of each metric of evals.scores.glue, with the names of the official GLUE metric.
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
        data: one phrase on the source of the rows.
        ids: of each row in prediction files.
        extra: further data that a task's scores need, one per row (HANS pairs).
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
        """SHA-256 of everything that scores depend on: texts, gold labels and `extra`, but not the file they were read from."""
        text = repr((self.texts, self.gold, self.labels, self.extra)).encode()
        return hashlib.sha256(text).hexdigest()

    def sample(self, count: int | None, seed: int) -> Rows:
        """Return `count` rows drawn at random without replacement, in their order; all rows when None."""
        if count is None or count >= len(self):
            return self
        kept = sorted(random.Random(seed).sample(range(len(self)), count))
        return self.chosen(kept, f"{count:,} of {len(self):,} rows drawn with seed {seed}")

    def chosen(self, kept: Sequence[int], how: str) -> Rows:
        """Return some of the rows.

        Args:
            kept: their indices.
            how: they were chosen; added to the phrase on their source.
        """

        def pick(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[i] for i in kept) if values else ()

        return replace(
            self,
            texts=pick(self.texts),
            gold=pick(self.gold),
            ids=pick(self.ids),
            extra=pick(self.extra),
            data=f"{self.data}; {how}",
        )


@dataclass(frozen=True)
class EvalTask:
    """A task: its class names, and the function that reads its rows.

    Attributes:
        labels: class names in the task's integer order; none where the task is regression.
        read: from a path (None: the task's own source) and a seed to rows.
        metric: a key of METRICS.
        coarse: fine label -> task label, for models with more classes (three-way NLI on two-way HANS).
        aliases: another name -> a task label or a fine label.
        source: where rows are read from without a path, for people to read.
        scale: the smallest and largest gold number of a regression task.
    """

    name: str
    labels: tuple[str, ...]
    read: Callable[[Path | None, int], Rows]
    metric: str
    coarse: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    source: str = ""
    scale: tuple[float, float] = (-math.inf, math.inf)

    @property
    def regression(self) -> bool:
        """Whether the gold label is a number and not a class."""
        return not self.labels
