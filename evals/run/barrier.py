"""Measure the loss along the straight line between two models, naive and aligned."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.predict.process_group import local_device
from evals.predict.workers import worker_group
from evals.run.options import EvalOptions, read_rows, reuse_result, stored_results
from merge.checkpoints.weights.arrays import check_device

if TYPE_CHECKING:
    from evals.tasks.task import EvalTask
    from merge.alignment.settings import AlignEntry
    from merge.checkpoints.checkpoint import Checkpoint


def measure_barrier(
    pair: tuple[Checkpoint, Checkpoint], task: EvalTask, settings: AlignEntry, points: int, options: EvalOptions
) -> dict[str, Any]:
    """Return the barrier record of two models: the naive line and, if an alignment is asked for, the aligned one.

    Args:
        pair: the endpoints, lam = 0 first, as encoders (without sentence-transformers modules).
        points: of the even grid of lam, the endpoints included.
    Raises:
        MismatchError: the two models do not fit one another.
    """
    from evals.paths.barrier import barrier_key, barrier_record, measure_pair
    from evals.predict.embeddings import with_modules
    from evals.predict.logits import label_notes, match_labels
    from evals.predict.predictor import make_predictor
    from evals.predict.regression import scale_notes
    from evals.results.measure import named
    from evals.results.store import add_result
    from evals.tasks.label_names import MatchedTask
    from merge.alignment.rewrite import rewritten
    from merge.checkpoints.model_set import ModelSet
    from merge.run.plan.heads import plan_heads
    from merge.run.plan.preflight import Allowed, preflight
    from merge.run.rebase import rebase

    begun = time.monotonic()
    pair = with_modules(pair[0]), with_modules(pair[1])
    check_device(options.device)
    heads = plan_heads(None, ModelSet(pair))
    notes = preflight(heads, Allowed(dtype="float32"))
    columns, stored = match_labels(task, pair[0], options.labels), stored_results(options)
    matched = MatchedTask(task, read_rows(task, options), columns, pair[0])
    key = barrier_key(pair, matched, settings, options.seed, points, options.max_length)
    names = {"a": named(pair[0]), "b": named(pair[1]), "data": matched.rows.data, "split": matched.rows.split}
    record = reuse_result(stored, key, names, options.output)
    if record is not None:
        return record
    with rewritten(settings, heads.given, Path(tempfile.gettempdir()) / "barrier") as ready:
        rebased = rebase(settings, plan_heads(None, ready.models), options.seed)
        predictor = make_predictor(
            pair[0],
            device=local_device(options.device),
            cache=not options.no_cache,
            workers=worker_group(),
            max_length=options.max_length,
        )
        curves, more = measure_pair(pair, ready.models, rebased, matched, points, predictor)
    alignment = rebased.aligned[0].to_json() if rebased.aligned else None
    notes = (
        *notes,
        *label_notes(pair[0], options.labels),
        *scale_notes(task, pair[0]),
        *ready.notes,
        *rebased.notes,
        *more,
    )
    record = barrier_record(key, matched, pair, curves, alignment, notes, time.monotonic() - begun)
    if options.output:
        add_result(options.output, record)
    return record
