"""The command that measures stitching penalties of two models at every depth: stitch."""

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
    task_option,
    text_options,
    text_source,
    threads_option,
)
from evals.commands.show import show_inside
from evals.run.inside.stitch import measure_stitch
from evals.run.inside.texts import FeatureTexts
from merge.checkpoints.weights.arrays import check_device
from merge.commands.stitch_models import MAPS
from merge.commands.terminal import common_options, set_verbosity


@sectioned_command(short_help="Measure stitches of lower layers of A and upper layers of B.")
@click.argument("a")
@click.argument("b")
@task_option
@click.option(
    "--map",
    "kind",
    type=click.Choice(MAPS),
    default="affine",
    show_default=True,
    help="Family of the map between them.",
)
@click.option(
    "--ridge", type=click.FloatRange(min=0), default=1e-2, show_default=True, help="Pull of fits to the best rotation."
)
@click.option("--rank", type=click.IntRange(min=1), help="Rank of --map low-rank.  [default: an eighth of the units]")
@click.option("--all-pairs", is_flag=True, help="Stitch every cut of A to every cut of B too, as a matrix.")
@click.option("--no-line", is_flag=True, help="Measure no barrier and no LLFC of the same two models beside it.")
@text_options
@data_options
@model_options
@threads_option
@table_option
@common_options
def stitch(a: str, b: str, **options: Any) -> None:
    """Measure what B loses when its upper layers read mapped states of A's lower layers (Bansal et al. 2021).

    At every depth: the penalty against B, beside four controls (no map, mean state only, random A, B below A) and linear CKA;
    beside all, the barrier and LLFC of the same two models. Maps are fitted on --text. With --task the rows of --data are
    scored; without, agreement with B (cosine, KL) on texts held out of the fit. Nothing but the report is written;
    stitch-models writes a stitched model.

    \b
    Examples:
      evaluate-models stitch a/ b/ --task mnli --data dev.jsonl --text sample.txt -o report
      evaluate-models stitch a/ b/ --text sample.txt --map affine+norm --all-pairs -o report
    """
    set_verbosity(options["verbose"], options["quiet"])
    from evals.inside.stitching import StitchPlan
    from evals.tasks import find_task
    from merge.checkpoints.open import open_checkpoint

    shared = eval_options(options)
    check_formats(shared)
    check_device(shared.device)
    task = None if options["task"] is None else find_task(options["task"])
    plan = StitchPlan(options["kind"], options["ridge"], options["rank"], options["all_pairs"], not options["no_line"])
    pair = open_checkpoint(a), open_checkpoint(b)
    show_inside(measure_stitch(pair, FeatureTexts(task, text_source(options)), plan, shared), shared)
