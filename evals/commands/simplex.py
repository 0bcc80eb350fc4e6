"""The command that grows simplexes of low loss from trained models: simplex."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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
from evals.run.surface.simplex import KIND_NAMES, SimplexPlan, measure_simplex
from merge.checkpoints.weights.arrays import check_device
from merge.commands.terminal import MAX_COUNT, common_options, set_verbosity
from merge.errors import UsageError


@sectioned_command(short_help="Grow simplexes of low loss from models; average predictions.")
@click.argument("models", nargs=-1, required=True)
@click.option("--task", required=True, help="A task with classes: evaluate-models tasks lists them, or a TASK.yaml.")
@click.option(
    "--also",
    multiple=True,
    metavar="TASK[=DATA]",
    help="A further task on which ensembles are compared; DATA is its file or folder, else the task's own source.",
)
@click.option("--against", multiple=True, metavar="MODEL", help="A further model of the deep ensemble to compare with.")
@click.option(
    "--kind",
    type=click.Choice(KIND_NAMES),
    default="espro",
    show_default=True,
    help="espro grows a simplex from each model; spro grows vertices that join all of them.",
)
@click.option("--vertices", type=click.IntRange(1, 12), default=2, show_default=True, help="Vertices that are grown.")
@click.option(
    "--samples",
    "points_drawn",
    type=click.IntRange(1, MAX_COUNT),
    default=5,
    show_default=True,
    help="Points drawn from each simplex.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.05,
    show_default=True,
    help="How far over its model's loss a simplex counts as low.",
)
@click.option(
    "--volume",
    "strength",
    type=click.FloatRange(min=0),
    default=1e-3,
    show_default=True,
    help="Weight of the volume's logarithm in the training loss.",
)
@learning_options
@data_options
@model_options
@threads_option
@table_option
@common_options
def simplex(models: tuple[str, ...], **options: Any) -> None:
    """Grow simplexes of low loss from MODELS: volume, the largest dimension of low loss, and the ensemble of drawn points.

    Each new vertex is trained on the rows of --train so that the loss is low everywhere between it and the vertices before, and
    the volume is large. Accuracy, likelihood and calibration of the averaged predictions are set against the deep ensemble and
    the average of the models. With -o the vertices are written as checkpoints, and an interrupted training goes on where it
    stopped.

    \b
    Examples:
      evaluate-models simplex a/ --task mnli --train train.jsonl --data dev.jsonl --vertices 3 -o report
      evaluate-models simplex a/ b/ --against c/ --task hans --train t.jsonl --data dev.jsonl --also hans=all.jsonl -o report
    """
    set_verbosity(options["verbose"], options["quiet"])
    from evals.tasks import find_task
    from merge.checkpoints.open import open_encoder

    shared = eval_options(options)
    check_formats(shared)
    check_device(shared.device)
    data = [TaskData(find_task(options["task"]), shared.data), *_further(options["also"])]
    plan = SimplexPlan(
        options["kind"], options["vertices"], options["points_drawn"], options["tolerance"], options["strength"]
    )
    opened, against = (list(map(open_encoder, each)) for each in (models, options["against"]))
    with kept_on_interruption(shared):
        show_surface(measure_simplex(opened, against, data, plan, learning_of(options), shared), shared)


def _further(also: Sequence[str]) -> list[TaskData]:
    """Return the data set of each --also TASK or TASK=DATA."""
    from evals.tasks import find_task

    asked = []
    for entry in also:
        name, equals, path = entry.partition("=")
        if not name or (equals and not path):
            raise UsageError(f"--also expects TASK or TASK=DATA, found {entry!r}.")
        asked.append(TaskData(find_task(name), Path(path) if path else None))
    return asked
