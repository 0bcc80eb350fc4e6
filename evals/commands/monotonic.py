"""The command that measures the loss from the start of training to its end: monotonic."""

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
from evals.commands.surface import kept_on_interruption, show_surface
from evals.run.line import TaskData
from evals.run.surface.models import expanded
from evals.run.surface.monotonic import MonotonicPlan, measure_monotonic
from merge.checkpoints.weights.arrays import check_device
from merge.commands.terminal import MAX_COUNT, common_options, set_verbosity


@sectioned_command(short_help="Does the loss fall all the way from INIT to FINAL?")
@click.argument("init")
@click.argument("finals", nargs=-1, required=True, metavar="FINAL...")
@click.option("--task", required=True, help="A task: evaluate-models tasks lists them, or a TASK.yaml.")
@click.option(
    "--points",
    type=click.IntRange(3, MAX_COUNT),
    default=21,
    show_default=True,
    help="Points of the even grid, ends included.",
)
@click.option(
    "--head-seed",
    type=int,
    help="Draw the head that INIT lacks as transformers does after torch.manual_seed of this; else its start is unknown, and "
    "the head of FINAL is kept.",
)
@click.option(
    "--gauss-rows",
    type=click.IntRange(min=0),
    default=32,
    show_default=True,
    help="Rows of which the Gauss length is measured; 0 leaves it out.",
)
@data_options
@model_options
@threads_option
@table_option
@common_options
def monotonic(init: str, finals: tuple[str, ...], **options: Any) -> None:
    """Measure the loss on the straight line from INIT, where training started, to FINAL, where it ended.

    Smallest Delta (the largest rise between any two points), bumps with their heights and widths, Gauss length (how much the
    logits' direction turns) and distance. INIT is a checkpoint of FINAL's class, or the pretrained model without a head. Several
    FINAL, or the folder of a training run with its checkpoint-*, give a line each and the distance travelled.

    \b
    Examples:
      evaluate-models monotonic pretrained/ final/ --task mnli --data train.jsonl --limit 500 --head-seed 0 -o report
      evaluate-models monotonic run/checkpoint-100 run/ --task mnli -o report
    """
    set_verbosity(options["verbose"], options["quiet"])
    from evals.tasks import find_task
    from merge.checkpoints.open import open_base, open_encoder

    shared = eval_options(options)
    check_formats(shared)
    check_device(shared.device)
    data = TaskData(find_task(options["task"]), shared.data)
    start, opened = open_base(init).encoder, list(map(open_encoder, expanded(finals)))
    plan = MonotonicPlan(options["points"], options["head_seed"], options["gauss_rows"])
    with kept_on_interruption(shared):
        show_surface(measure_monotonic(start, opened, data, plan, shared), shared)
