"""The command that measures the loss along the straight line from one model to another: barrier."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evals.commands.options import SETTINGS, check_formats, data_options, eval_options, model_options, table_option
from evals.commands.show import show
from evals.predict.process_group import local_device
from evals.predict.workers import worker_group
from evals.run.options import EvalOptions, read_rows, reuse_result, stored_results
from merge.checkpoints.weights.arrays import check_device
from merge.commands.align_options import align_entry, align_options
from merge.commands.terminal import common_options, set_verbosity
from merge.errors import UsageError

if TYPE_CHECKING:
    from evals.tasks.task import EvalTask
    from merge.alignment.settings import AlignEntry


@click.command(context_settings=SETTINGS, short_help="Measure the loss along the line from A to B.")
@click.argument("a")
@click.argument("b")
@click.option("--task", required=True, help="A task of classes: evaluate-models tasks, or a TASK.yaml.")
@align_options
@click.option(
    "--points",
    type=click.IntRange(min=3),
    default=11,
    show_default=True,
    help="Points on the line, endpoints included.",
)
@data_options
@model_options
@table_option
@common_options
def barrier(a: str, b: str, **options: Any) -> None:
    """Measure the loss along the straight line from A to B: barrier, epsilon, convexity gap.

    The calibrated barrier is the barrier of the losses after temperature scaling; every temperature is fitted on these rows.

    \b
    Example:
      evaluate-models barrier a/ b/ --task hans --align activations --text train.jsonl -o report
    """
    from evals.tasks import find_task
    from merge.recipe.recipe import make_align_entry

    set_verbosity(options["verbose"], options["quiet"])
    shared = eval_options(options)
    check_formats(shared)
    check_device(shared.device)
    task, settings = find_task(options["task"]), make_align_entry(align_entry(options))
    if task.regression:
        raise UsageError(f"--task {task.name}: the barrier is that of cross-entropy, and this task has no classes.")
    show([_barrier(a, b, task, settings, options["points"], shared)], shared, "barrier")


def _barrier(a: str, b: str, task: EvalTask, settings: AlignEntry, points: int, options: EvalOptions) -> dict[str, Any]:
    """Measure the naive line and, if asked, the aligned one; store the record."""
    from evals.paths.barrier import barrier_key, barrier_record, measure_pair
    from evals.predict.logits import match_labels
    from evals.predict.predictor import make_predictor
    from evals.results.measure import named
    from evals.results.store import add_result
    from evals.tasks.label_names import MatchedTask
    from merge.alignment.rewrite import rewritten
    from merge.checkpoints.checkpoint import open_encoder
    from merge.checkpoints.model_set import ModelSet
    from merge.run.plan.heads import plan_heads
    from merge.run.plan.preflight import Allowed, preflight
    from merge.run.rebase import rebase

    begun = time.monotonic()
    pair = open_encoder(a), open_encoder(b)
    heads = plan_heads(None, ModelSet(pair))
    notes = preflight(heads, Allowed(dtype="float32"))
    columns, stored = match_labels(task, pair[0], options.labels), stored_results(options)
    matched = MatchedTask(task, read_rows(task, options), columns)
    key = barrier_key(pair, matched, settings, options.seed, points)
    names = {"a": named(pair[0]), "b": named(pair[1]), "data": matched.rows.data, "split": matched.rows.split}
    record = reuse_result(stored, key, names, options.output)
    if record is not None:
        return record
    with rewritten(settings, heads.given, Path(tempfile.gettempdir()) / "barrier") as ready:
        rebased = rebase(settings, plan_heads(None, ready.models), options.seed)
        predictor = make_predictor(
            pair[0], device=local_device(options.device), cache=not options.no_cache, workers=worker_group()
        )
        curves, more = measure_pair(pair, ready.models, rebased, matched, points, predictor)
    alignment = rebased.aligned[0].to_json() if rebased.aligned else None
    notes = (*notes, *ready.notes, *rebased.notes, *more)
    record = barrier_record(key, matched, pair, curves, alignment, notes, time.monotonic() - begun)
    if options.output:
        add_result(options.output, record)
    return record
