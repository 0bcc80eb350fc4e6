"""The command that measures the loss on the way from one model to another: barrier."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click

from evals.commands.options import (
    SETTINGS,
    check_device,
    check_forms,
    data_options,
    known_results,
    listed,
    model_options,
    read_rows,
    stored_result,
    table_option,
)
from evals.commands.show import show
from evals.predict.crew import crew
from evals.predict.rendezvous import device_here
from merge.commands.align_options import align_entry, align_options
from merge.commands.terminal import common_options, set_verbosity
from merge.errors import UsageError


@click.command(context_settings=SETTINGS, short_help="Measure the loss along the line from A to B.")
@click.argument("a")
@click.argument("b")
@click.option("--task", required=True, help="A task of classes: evaluate-models tasks, or a TASK.yaml.")
@align_options
@click.option(
    "--points", type=click.IntRange(min=3), default=11, show_default=True, help="Points on the line, ends included."
)
@data_options
@model_options
@table_option
@common_options
def barrier(a: str, b: str, **options: Any) -> None:
    """Measure the loss along the straight line from A to B: barrier, epsilon, convexity gap.

    The calibrated barrier is that of the losses at every model's best temperature, fitted on the rows it is reported on.

    \b
    Example:
      evaluate-models barrier a/ b/ --task hans --align activations --text train.jsonl -o report
    """
    set_verbosity(options["verbose"], options["quiet"])
    check_forms(options)
    check_device(options)
    show([_barrier(a, b, options)], options, "barrier")


def _barrier(a: str, b: str, options: dict[str, Any]) -> dict[str, Any]:
    """Measure the naive line and, if asked, the aligned one; store the record."""
    from evals.tasks import find_task
    from merge.recipe.recipe import make_align_entry

    begun = time.monotonic()
    task, stated = find_task(options["task"]), listed(options["labels"], "--labels")
    if task.regression:
        raise UsageError(f"--task {task.name}: the barrier is one of cross-entropy, and this task has no classes.")
    settings, seed = make_align_entry(align_entry(options)), options["seed"]

    from evals.paths.barrier import barrier_key, barrier_record, measure_pair
    from evals.predict.logits import match_labels
    from evals.predict.predictor import make_predictor
    from evals.results.measure import named
    from evals.results.store import add_result
    from merge.alignment.rewrite import prepared
    from merge.checkpoints.checkpoint import open_encoder
    from merge.run.plan.preflight import Allowed, preflight
    from merge.run.rebase import find_bases

    pair = open_encoder(a), open_encoder(b)
    notes = preflight(pair, allowed=Allowed(dtype="float32"))
    columns, known = match_labels(task, pair[0], stated), known_results(options)
    rows = read_rows(task, options)
    key = barrier_key(pair, task, rows, columns, settings, seed, options["points"])
    said = {"a": named(pair[0]), "b": named(pair[1]), "data": rows.data, "split": rows.split}
    record = stored_result(known, key, said, options["output"])
    if record is not None:
        return record
    with prepared(settings, pair, None, Path(tempfile.gettempdir()) / "barrier") as ready:
        first, second = ready.models
        bases = find_bases(settings, ready.models, seed=seed)
        predictor = make_predictor(
            pair[0], device=device_here(options["device"]), cache=not options["no_cache"], crew=crew()
        )
        rewritten = None if ready.models == pair else (first, second)
        curves, more = measure_pair(pair, bases, task, rows, columns, options["points"], predictor, rewritten)
    alignment = bases.aligned[0].to_json() if bases.aligned else None
    notes = (*notes, *ready.notes, *bases.notes, *more)
    record = barrier_record(key, task, rows, pair, curves, alignment, notes, time.monotonic() - begun)
    if options["output"]:
        add_result(options["output"], record)
    return record
