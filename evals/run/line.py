"""Measure the line between two models on one data set or several: every summary of each curve, one pass over lam for all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.predict.workers import worker_group
from evals.run.barrier import Measured, check_pair, measure_pair_lines
from evals.run.options import EvalOptions, read_rows, reuse_result, stored_results
from merge.errors import UsageError, nearest

if TYPE_CHECKING:
    from evals.paths.pair_lines import LinePlan
    from evals.tasks.label_names import MatchedTask
    from evals.tasks.task import EvalTask
    from merge.alignment.settings import AlignEntry
    from merge.checkpoints.checkpoint import Checkpoint

    Pair = tuple[Checkpoint, Checkpoint]

# The keys of evals.paths.heads.HEADS, here without loading torch.
HEAD_NAMES = ("both", "A", "refit")


@dataclass(frozen=True)
class TaskData:
    """A task and where its rows are read from; None for the task's own source."""

    task: EvalTask
    data: Path | None


def measure_line(
    pair: Pair, asked: Sequence[TaskData], settings: AlignEntry, plan: LinePlan, options: EvalOptions
) -> list[dict[str, Any]]:
    """Return the line record of two models on each data set.

    Records of the results folder are reused; the others are measured in one pass over lam.

    Args:
        pair: the endpoints, lam = 0 first, as encoders (without sentence-transformers modules).
        asked: the data sets; the first is that of --task.
    Raises:
        UsageError: a data set is named twice; a head is unknown or cannot be re-fitted on several
            processes.
        MismatchError: the two models do not fit one another.
        TaskError: a task does not fit the models, or rows are malformed.
    """
    from evals.paths.pair_lines import LinePlan
    from evals.predict.embeddings import with_modules
    from evals.predict.logits import match_labels
    from evals.results.measure import named
    from evals.results.store import add_result
    from evals.tasks.label_names import MatchedTask

    begun = time.monotonic()
    plan = LinePlan(plan.points, _checked_heads(plan.heads), plan.adaptive, options.seed)
    pair = with_modules(pair[0]), with_modules(pair[1])
    heads, notes = check_pair(pair, options)
    columns = [match_labels(each.task, pair[0], options.labels) for each in asked]
    stored = stored_results(options)
    rows = [read_rows(each.task, replace(options, data=each.data)) for each in asked]
    sets = [MatchedTask(each.task, r, c, pair[0]) for each, r, c in zip(asked, rows, columns, strict=True)]
    _check_different(sets)
    keys = _line_keys(pair, sets, settings, plan, options)
    ends = {"a": named(pair[0]), "b": named(pair[1])}
    records = {}
    for key, matched in zip(keys, sets, strict=True):
        names = {**ends, "data": matched.rows.data, "split": matched.rows.split}
        if (record := reuse_result(stored, key, names, options.output)) is not None:
            records[key] = record
    missing = [(key, matched) for key, matched in zip(keys, sets, strict=True) if key not in records]
    if missing:
        measured = measure_pair_lines(pair, heads, settings, [matched for _, matched in missing], plan, options)
        for at, (key, matched) in enumerate(missing):
            records[key] = _record(key, matched, pair, measured, at, notes, time.monotonic() - begun)
            if options.output:
                add_result(options.output, records[key])
    return [records[key] for key in keys]


def _record(
    key: str, matched: MatchedTask, pair: Pair, measured: Measured, at: int, notes: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Return the record of one data set: that of a barrier, whose curves have their head and summaries too."""
    from evals.paths.barrier import barrier_record

    lines = measured.lines[at]
    curves = [line.curve for line in lines]
    record = barrier_record(key, matched, pair, curves, measured.alignment, (*notes, *measured.notes[at]), seconds)
    return {**record, "kind": "line", "curves": [line.to_json() for line in lines]}


def _line_keys(
    pair: Pair, sets: Sequence[MatchedTask], settings: AlignEntry, plan: LinePlan, options: EvalOptions
) -> list[str]:
    """Return the key of each record; a grid that is refined where any curve bends depends on all data sets."""
    from evals.paths.barrier import barrier_key
    from evals.results.measure import record_key

    single = [barrier_key(pair, matched, settings, options.seed, plan.points, options.max_length) for matched in sets]
    seed = plan.seed if "refit" in plan.heads else None
    return [record_key("line", key, plan.heads, seed, single if plan.adaptive else None) for key in single]


def _checked_heads(heads: Sequence[str]) -> tuple[str, ...]:
    for head in heads:
        if head not in HEAD_NAMES:
            raise UsageError(f"unknown head {head!r}.{nearest(head, HEAD_NAMES)}")
    if not heads:
        raise UsageError(f"no head is named; choose among {', '.join(HEAD_NAMES)}.")
    if "refit" in heads and worker_group() is not None:
        raise UsageError(
            "--head refit reads the inputs of the last layer, in one process only. Start it without torchrun."
        )
    return tuple(dict.fromkeys(heads))


def _check_different(sets: Sequence[MatchedTask]) -> None:
    """Stop where two data sets are the same rows of the same task.

    Raises:
        UsageError: names the task.
    """
    seen: set[tuple[str, str]] = set()
    for matched in sets:
        content = (matched.task.name, matched.rows.hash)
        if content in seen:
            raise UsageError(
                f"{matched.task.name} is asked for twice with the same rows ({matched.rows.data}). Name each data set once."
            )
        seen.add(content)
