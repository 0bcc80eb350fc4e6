"""What a sweep measures, as every worker receives it, and the keys of its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from evals.clusters.pair_losses import Pair
from evals.paths.barrier import alignment_facts
from evals.results.measure import record_key
from evals.tasks.task import EvalTask, Rows
from merge.alignment.settings import AlignEntry

NAIVE, ALIGNED = "naive", "aligned"


@dataclass(frozen=True)
class SweptModel:
    """A model of a sweep.

    Attributes:
        name: differs from those of the others.
        folder: that every worker can read.
        hash: of its content.
        columns: for each of its classes the index of the task's class.
        embedded: what decides its embeddings, on a task of numbers.
    """

    name: str
    folder: Path
    hash: str
    columns: tuple[int, ...]
    embedded: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """Models, the rows that they are measured on, and how: all that a record depends on, and where it is written.

    Attributes:
        models: their class labels match; the first gives the order of classes and the tokenizer.
        task: without its reader, as `without_reader` returns it.
        points: of the even grid of lam.
        settings: of the alignment; nothing is aligned where they move nothing.
        reference: index of the model that all are aligned to; None where the second model of each pair is aligned to the first.
        store: folder of the records.
        run: differs for every run of a command, and is the same in all its tasks.
        labels: class names of every model in the order of its logits; None for those of its config.
        held: how many models' weights a worker keeps.
        device: where models compute; "cuda" takes one GPU after the other for one block after the other.
        owner: process id of the command; a worker whose parent has another id has been left behind, and stops. None for workers
            that are no children of the command (Ray, Dask).
    """

    models: tuple[SweptModel, ...]
    task: EvalTask
    rows: Rows
    points: int
    settings: AlignEntry
    store: Path
    run: str
    labels: tuple[str, ...] | None = None
    held: int = 3
    reference: int | None = None
    seed: int = 0
    max_length: int | None = None
    device: str = "cpu"
    cache: bool = True
    owner: int | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines that are measured of each pair."""
        return (NAIVE, ALIGNED) if self.settings.moves else (NAIVE,)

    @property
    def hashes(self) -> tuple[str, ...]:
        return tuple(model.hash for model in self.models)

    def ordered(self, line: str, pair: Pair) -> Pair:
        """Return the two models of a pair, lam = 0 first.

        Where the order changes nothing but rounding it is that of their content, so that a record does not depend on the order
        in which models are named. Where the second model is aligned to the first, it is the order of the models.
        """
        low, high = sorted(pair)
        if line == ALIGNED and self.reference is None:
            return low, high
        return (low, high) if self.models[low].hash <= self.models[high].hash else (high, low)

    def end_key(self, model: int) -> str:
        """Return the key of the losses of a model."""
        swept = self.models[model]
        return record_key("ends", *self._rows_facts(swept), swept.hash)

    def pair_key(self, line: str, pair: Pair) -> str:
        """Return the key of the losses between two models."""
        a, b = (self.models[k] for k in self.ordered(line, pair))
        aligned = None if line == NAIVE else [alignment_facts(self.settings, self.seed), self._reference_hash()]
        return record_key("pairs", *self._rows_facts(a), a.hash, b.hash, self.points, aligned)

    def transform_key(self, model: int) -> str:
        """Return the key of the transform of a model into the units of the reference."""
        facts = alignment_facts(self.settings, self.seed)
        return record_key("transforms", self._reference_hash(), self.models[model].hash, facts)

    def average_key(self, line: str, members: Sequence[int]) -> str:
        """Return the key of the losses of the average of several models."""
        aligned = None if line == NAIVE else [alignment_facts(self.settings, self.seed), self._reference_hash()]
        hashes = [self.models[k].hash for k in members]
        return record_key("averages", *self._rows_facts(self.models[members[0]]), hashes, aligned)

    def _rows_facts(self, first: SweptModel) -> tuple[Any, ...]:
        """Return what a loss depends on beside the weights; the classes are those of the first model."""
        return self.task.name, self.rows.hash, first.columns, self.max_length, first.embedded

    def _reference_hash(self) -> str | None:
        return None if self.reference is None else self.models[self.reference].hash


def without_reader(task: EvalTask) -> EvalTask:
    """Return the task for a worker, which receives rows and reads none."""
    from dataclasses import replace

    return replace(task, read=_no_reader)


def _no_reader(_path: Path | None, _seed: int) -> NoReturn:
    raise AssertionError("workers receive the rows")
