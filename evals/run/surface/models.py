"""Models of a surface: runs expanded into their checkpoints, checked against one another, aligned, and their weights read."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.predict.process_group import local_device
from evals.predict.workers import worker_group
from evals.run.barrier import check_pair
from evals.run.line import TaskData
from evals.run.options import EvalOptions, read_rows
from merge.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from evals.paths.walk import EncodedTask
    from evals.predict.predictor import Predictor
    from evals.tasks.label_names import MatchedTask
    from merge.alignment.settings import AlignEntry
    from merge.checkpoints.checkpoint import Checkpoint
    from merge.run.plan.heads import HeadPlan

CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def is_run(source: str) -> bool:
    """Return whether a source is a folder of a training run, and no checkpoint itself."""
    folder = Path(source).expanduser()
    return folder.is_dir() and not (folder / "config.json").is_file()


def run_checkpoints(source: str) -> list[str]:
    """Return the checkpoints of a training run, in the order of their steps.

    Raises:
        UsageError: there are none.
    """
    numbered = numbered_checkpoints(source)
    if not numbered:
        raise UsageError(
            f"{source} holds neither a checkpoint (config.json) nor those of a training run (checkpoint-100/, "
            "checkpoint-200/, ...)."
        )
    return [str(each) for _, each in numbered]


def numbered_checkpoints(source: str) -> list[tuple[int, Path]]:
    """Return (step, folder) of each checkpoint-STEP in a folder, by their steps; none where there is no such folder."""
    folder = Path(source).expanduser()
    inside = folder.iterdir() if folder.is_dir() else ()
    numbered = [
        (int(match[1]), each) for each in inside if (match := CHECKPOINT.fullmatch(each.name)) and each.is_dir()
    ]
    return sorted(numbered)


def expanded(sources: Sequence[str]) -> list[str]:
    """Return the sources with every training run replaced by its checkpoints.

    Raises:
        UsageError: a folder is neither a checkpoint nor such a run.
    """
    return [each for source in sources for each in (run_checkpoints(source) if is_run(source) else [source])]


@dataclass(frozen=True)
class Asked:
    """Models that fit one another, and the data sets that they are measured on.

    Attributes:
        models: as they are, the first of which gives the order of classes.
        sets: rows of each task, its classes matched to those of the first model.
        notes: for the user.
    """

    models: tuple[Checkpoint, ...]
    heads: HeadPlan
    sets: tuple[MatchedTask, ...]
    notes: tuple[str, ...]


def asked_models(models: Sequence[Checkpoint], data: Sequence[TaskData], options: EvalOptions) -> Asked:
    """Return models and data sets, checked.

    Raises:
        MismatchError: the models do not fit one another; lists every fault.
        TaskError: a task does not fit the models, or rows are malformed.
    """
    from evals.predict.embeddings import with_modules
    from evals.predict.logits import match_labels
    from evals.tasks.label_names import MatchedTask

    whole = tuple(map(with_modules, models))
    heads, notes = check_pair(whole, options)
    columns = [match_labels(each.task, whole[0], options.labels) for each in data]
    rows = [read_rows(each.task, replace(options, data=each.data)) for each in data]
    sets = tuple(MatchedTask(each.task, r, c, whole[0]) for each, r, c in zip(data, rows, columns, strict=True))
    return Asked(whole, heads, sets, notes)


def facts(asked: Asked, settings: AlignEntry, options: EvalOptions, at: int = 0) -> list[Any]:
    """Return everything but the points that decides what is measured on a data set: for the keys of results."""
    from evals.paths.barrier import alignment_facts
    from evals.predict.embeddings import embedding_facts

    matched = asked.sets[at]
    hashes = [model.content_hash for model in asked.models]
    embedded = [embedding_facts(model) for model in asked.models] if matched.task.regression else []
    aligned = alignment_facts(settings, options.seed)
    return [matched.task.name, matched.rows.hash, hashes, matched.columns, aligned, embedded, options.max_length]


@dataclass(frozen=True)
class Prepared:
    """Models in one basis, ready to be combined and measured.

    Attributes:
        weights: of each model, float32, by the names that transformers writes.
        checkpoint: whose config and files a combination has.
        alignment: what it did to each model but the first, as results.json has it; empty where nothing was aligned.
    """

    weights: tuple[Mapping[str, Tensor], ...] = field(repr=False)
    checkpoint: Checkpoint
    predictor: Predictor
    encoded: tuple[EncodedTask, ...]
    alignment: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]


@contextmanager
def prepared(asked: Asked, settings: AlignEntry, options: EvalOptions) -> Iterator[Prepared]:
    """Yield the models with their classes in the order of the first and, if the settings ask for it, aligned to it."""
    from evals.paths.pair_lines import endpoints
    from evals.paths.walk import EncodedTask
    from evals.predict.logits import matched_label_notes
    from evals.predict.predictor import make_predictor
    from evals.predict.regression import scale_notes
    from evals.results.measure import reading_notes
    from merge.alignment.rewrite import rewritten
    from merge.run.plan.heads import plan_heads
    from merge.run.rebase import rebase

    with rewritten(settings, asked.heads.given, Path(tempfile.gettempdir()) / "surface") as ready:
        rebased = rebase(settings, plan_heads(None, ready.models), options.seed)
        weights = endpoints(ready.models.models, rebased, rebased.transforms)
        first = ready.models.models[0]
        predictor = make_predictor(
            first,
            device=local_device(options.device),
            cache=not options.no_cache,
            workers=worker_group(),
            max_length=options.max_length,
        )
        encoded = tuple(EncodedTask(matched, predictor.encode(matched.rows)) for matched in asked.sets)
        notes = (*matched_label_notes(asked.models, options.labels), *ready.notes, *rebased.notes)
        for each in encoded:
            matched = each.matched
            notes += tuple(scale_notes(matched.task, asked.models[0]))
            notes += tuple(reading_notes(matched.task, matched.columns, each.encoded, options.max_length))
        alignment = tuple(aligned.to_json() for aligned in rebased.aligned)
        yield Prepared(weights, first, predictor, encoded, alignment, tuple(dict.fromkeys(notes)))
