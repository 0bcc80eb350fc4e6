"""The command that trains a curve of low loss between two models: curve."""

from __future__ import annotations

from typing import Any

import click

from evals.commands.options import (
    check_formats,
    data_options,
    eval_options,
    model_options,
    sectioned_command,
    table_option,
    threads_option,
)
from evals.commands.surface import kept_on_interruption, learning_of, learning_options, show_surface
from evals.run.line import TaskData
from evals.run.surface.curve import KIND_NAMES, CurvePlan, measure_curve
from merge.checkpoints.weights.arrays import check_device
from merge.commands.align_options import align_entry, align_options_but
from merge.commands.terminal import MAX_COUNT, common_options, set_verbosity


@sectioned_command(short_help="Train a curve of low loss from A to B.")
@click.argument("a")
@click.argument("b")
@click.option("--task", required=True, help="A task: evaluate-models tasks lists them, or a TASK.yaml.")
@click.option("--kind", type=click.Choice(KIND_NAMES), default="bezier", show_default=True, help="Kind of curve.")
@click.option(
    "--bends", type=click.IntRange(1, 8), default=1, show_default=True, help="Trained points between the ends."
)
@click.option(
    "--points", type=click.IntRange(3, MAX_COUNT), default=11, show_default=True, help="Points that are measured."
)
@learning_options
@align_options_but("reference", "apply", "repair")
@data_options
@model_options
@threads_option
@table_option
@common_options
def curve(a: str, b: str, **options: Any) -> None:
    """Train a curve from A to B on which the loss is low, and measure it beside the straight line.

    The ends are A and B themselves; the bends between them are trained on the rows of --train, and measured on those of --data.
    With --align the curve is trained once more, from A to the aligned B. With -o the bends are written as checkpoints, and an
    interrupted training goes on where it stopped.

    \b
    Examples:
      evaluate-models curve a/ b/ --task mnli --train train.jsonl --data dev.jsonl -o report
      evaluate-models curve a/ b/ --task mnli --train train.jsonl --data dev.jsonl --kind chain --align weights -o report
    """
    set_verbosity(options["verbose"], options["quiet"])
    from evals.tasks import find_task
    from merge.checkpoints.open import open_encoder
    from merge.recipe.recipe import make_align_entry

    shared = eval_options(options)
    check_formats(shared)
    check_device(shared.device)
    data = TaskData(find_task(options["task"]), shared.data)
    settings = make_align_entry(align_entry(options))
    plan = CurvePlan(options["kind"], options["bends"], options["points"])
    pair = open_encoder(a), open_encoder(b)
    with kept_on_interruption(shared):
        show_surface(measure_curve(pair, data, settings, plan, learning_of(options), shared), shared)
