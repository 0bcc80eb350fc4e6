"""The command that measures the loss along the straight line from one model to another: barrier."""

from __future__ import annotations

from typing import Any

import click

from evals.commands.options import check_formats, eval_options, line_options, sectioned_command
from evals.commands.show import show
from evals.run.barrier import measure_barrier
from merge.checkpoints.weights.arrays import check_device
from merge.commands.align_options import align_entry
from merge.commands.terminal import set_verbosity


@sectioned_command(short_help="Measure the loss along the line from A to B.")
@click.argument("a")
@click.argument("b")
@click.option("--task", required=True, help="A task: evaluate-models tasks lists them, or a TASK.yaml.")
@line_options
def barrier(a: str, b: str, **options: Any) -> None:
    """Measure the loss along the straight line from A to B: barrier, epsilon, convexity gap.

    The loss is the cross-entropy, or the squared error where the task asks for a number (stsb). The interval of the barrier comes
    from drawing rows again, for the whole curve.

    The calibrated barrier is the barrier of the losses after temperature scaling; every temperature is fitted on these rows.

    \b
    Example:
      evaluate-models barrier a/ b/ --task hans --align activations --text train.jsonl -o report
    """
    set_verbosity(options["verbose"], options["quiet"])
    from evals.tasks import find_task
    from merge.checkpoints.open import open_encoder
    from merge.recipe.recipe import make_align_entry

    shared = eval_options(options)
    check_formats(shared)
    check_device(shared.device)
    task, settings = find_task(options["task"]), make_align_entry(align_entry(options))
    pair = open_encoder(a), open_encoder(b)
    show([measure_barrier(pair, task, settings, options["points"], shared)], shared, "barrier")
