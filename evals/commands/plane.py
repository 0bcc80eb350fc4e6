"""The command that measures the loss on a plane through weight space: plane."""

from __future__ import annotations

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
from evals.commands.surface import kept_on_interruption, show_surface
from evals.run.line import TaskData
from evals.run.surface.plane import SPANS, PlanePlan, check_count, measure_plane, most_distant, plane_sources
from merge.checkpoints.weights.arrays import check_device
from merge.commands.align_options import align_entry, align_options_but
from merge.commands.terminal import common_options, set_verbosity


@sectioned_command(short_help="Measure the loss on the plane through three models.")
@click.argument("models", nargs=-1)
@click.option("--task", required=True, help="A task: evaluate-models tasks lists them, or a TASK.yaml.")
@click.option(
    "--points", type=click.IntRange(3, 1000), default=7, show_default=True, help="Points a side of the even grid."
)
@click.option(
    "--levels",
    type=click.IntRange(0, 4),
    default=1,
    show_default=True,
    help="How often its cells are halved where the log loss bends; 0 measures the even grid alone.",
)
@click.option(
    "--span",
    type=click.Choice(SPANS),
    default="average",
    show_default=True,
    help="Plane of a training run: through its first and last checkpoint and the average of all, or along its first two "
    "principal components.",
)
@click.option(
    "--basins",
    type=click.Path(path_type=Path),
    metavar="REPORT",
    help="Take the three most distant of MODELS by the sweep that `basins -o REPORT` measured.",
)
@align_options_but("reference", "apply", "repair")
@data_options
@model_options
@threads_option
@table_option
@common_options
def plane(models: tuple[str, ...], **options: Any) -> None:
    """Measure loss and score on the plane through three MODELS, with the models and their average marked.

    MODELS are three folders or Hub ids; or the folder of a training run, whose checkpoint-* are on the plane; or, with --basins,
    the models of a sweep. With -o every point is kept as it is measured: the same command goes on where it was stopped, and a
    finer grid measures new points only.

    \b
    Examples:
      evaluate-models plane a/ b/ c/ --task mnli --data dev.jsonl --limit 500 -o report
      evaluate-models plane run/ --span pca --task mnli -o report
      evaluate-models plane zoo/*/ --basins report --task mnli -o report
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
    sources, of_run = plane_sources(models)
    if options["basins"] is None:
        check_count(len(sources), of_run)
    opened = list(map(open_encoder, sources))
    if options["basins"] is not None:
        opened = most_distant(options["basins"], opened)
    plan = PlanePlan(options["points"], options["levels"], options["span"])
    with kept_on_interruption(shared):
        show_surface(measure_plane(opened, data, settings, plan, shared), shared)
