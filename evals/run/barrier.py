"""Measure the loss along the straight line between two models, naive and aligned."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.predict.process_group import local_device
from evals.predict.workers import worker_group
from evals.run.options import EvalOptions, read_rows, reuse_result, stored_results
from merge.checkpoints.weights.arrays import check_device

if TYPE_CHECKING:
    from evals.paths.pair_lines import Line, LinePlan
    from evals.tasks.label_names import MatchedTask
    from evals.tasks.task import EvalTask
    from merge.alignment.settings import AlignEntry
    from merge.checkpoints.checkpoint import Checkpoint
    from merge.run.plan.heads import HeadPlan

    Pair = tuple[Checkpoint, Checkpoint]


@dataclass(frozen=True)
class Measured:
    """The lines between two models.

    Attributes:
        lines: of each data set.
        alignment: what it did to b, as results.json has it; None where nothing was aligned.
        notes: of each data set, for the user.
    """

    lines: list[list[Line]]
    alignment: dict[str, Any] | None
    notes: list[tuple[str, ...]]


def measure_barrier(
    pair: Pair, task: EvalTask, settings: AlignEntry, points: int, options: EvalOptions
) -> dict[str, Any]:
    """Return the barrier record of two models: the naive line and, if an alignment is asked for, the aligned one.

    Args:
        pair: the endpoints, lam = 0 first, as encoders (without sentence-transformers modules).
        points: of the even grid of lam, the endpoints included.
    Raises:
        MismatchError: the two models do not fit one another.
    """
    from evals.paths.barrier import barrier_key, barrier_record
    from evals.paths.pair_lines import LinePlan
    from evals.predict.embeddings import with_modules
    from evals.predict.logits import match_labels
    from evals.results.measure import named
    from evals.results.store import add_result
    from evals.tasks.label_names import MatchedTask

    begun = time.monotonic()
    pair = with_modules(pair[0]), with_modules(pair[1])
    heads, notes = check_pair(pair, options)
    columns, stored = match_labels(task, pair[0], options.labels), stored_results(options)
    matched = MatchedTask(task, read_rows(task, options), columns, pair[0])
    key = barrier_key(pair, matched, settings, options.seed, points, options.max_length)
    names = {"a": named(pair[0]), "b": named(pair[1]), "data": matched.rows.data, "split": matched.rows.split}
    record = reuse_result(stored, key, names, options.output)
    if record is not None:
        return record
    measured = measure_pair_lines(pair, heads, settings, [matched], LinePlan(points), options)
    curves, notes = [line.curve for line in measured.lines[0]], (*notes, *measured.notes[0])
    record = barrier_record(key, matched, pair, curves, measured.alignment, notes, time.monotonic() - begun)
    if options.output:
        add_result(options.output, record)
    return record


def check_pair(pair: tuple[Checkpoint, ...], options: EvalOptions) -> tuple[HeadPlan, tuple[str, ...]]:
    """Return the heads of two models, or more, that fit one another, and notes for the user.

    Raises:
        MismatchError: they do not fit; lists every fault.
    """
    from merge.checkpoints.model_set import ModelSet
    from merge.run.plan.heads import plan_heads
    from merge.run.plan.preflight import Allowed, preflight

    check_device(options.device)
    heads = plan_heads(None, ModelSet(pair))
    return heads, tuple(preflight(heads, Allowed(dtype="float32")))


def measure_pair_lines(
    pair: Pair,
    heads: HeadPlan,
    settings: AlignEntry,
    sets: Sequence[MatchedTask],
    plan: LinePlan,
    options: EvalOptions,
) -> Measured:
    """Align the two models, if the settings ask for it, and measure their lines on every data set."""
    from evals.paths.pair_lines import measure_lines
    from evals.predict.logits import matched_label_notes
    from evals.predict.predictor import make_predictor
    from evals.predict.regression import scale_notes
    from merge.alignment.rewrite import rewritten
    from merge.run.plan.heads import plan_heads
    from merge.run.rebase import rebase

    with rewritten(settings, heads.given, Path(tempfile.gettempdir()) / "barrier") as ready:
        rebased = rebase(settings, plan_heads(None, ready.models), options.seed)
        predictor = make_predictor(
            pair[0],
            device=local_device(options.device),
            cache=not options.no_cache,
            workers=worker_group(),
            max_length=options.max_length,
        )
        lines, more = measure_lines(pair, ready.models, rebased, sets, plan, predictor)
    alignment = rebased.aligned[0].to_json() if rebased.aligned else None
    shared = (*matched_label_notes(pair, options.labels), *ready.notes, *rebased.notes)
    scales = [scale_notes(matched.task, pair[0]) for matched in sets]
    return Measured(lines, alignment, [(*shared, *scale, *of_set) for scale, of_set in zip(scales, more, strict=True)])
