"""The command that asks whether the features of the average are the average of the features: features."""

from __future__ import annotations

from typing import Any

import click

from evals.commands.options import (
    TEXT_FLAGS,
    check_formats,
    data_options,
    eval_options,
    model_options,
    sectioned_command,
    table_option,
    task_option,
    text_source,
    threads_option,
)
from evals.commands.show import show_inside
from evals.run.inside.features import measure_features
from evals.run.inside.texts import FeatureTexts, check_one_source
from merge.checkpoints.weights.arrays import check_device
from merge.commands.align_options import align_entry, align_options_but
from merge.commands.terminal import common_options, set_verbosity


@sectioned_command(short_help="Compare features of the average with the average of features.")
@click.argument("a")
@click.argument("b")
@task_option
@click.option(
    "--lam",
    type=float,
    multiple=True,
    default=(0.5,),
    help="Interpolation coefficient, 0 at A; several give a curve each.  [default: 0.5]",
)
@click.option(
    "--site",
    multiple=True,
    metavar="SITE",
    help='A site ("layer 3 output") or a kind of sites ("ffn hidden"), several times.  [default: those of every sublayer]',
)
@click.option("--llfc-only", is_flag=True, help="Leave out additivity and commutativity, about half of the time.")
@align_options_but("reference", "repair")
@data_options
@model_options
@threads_option
@table_option
@common_options
def features(a: str, b: str, **options: Any) -> None:
    """Ask whether A and B are linear in their features too, layer by layer: LLFC (Zhou et al. 2023).

    Features of the interpolated model against the interpolated features, beside A against B; weak additivity of activations and
    norms; commutativity of weights and features. With --align the same after alignment, beside it. Labels are needed for the
    loss alone: give --task and --data, or --text FILE (also the calibration text of --align), else the package's own text.

    \b
    Examples:
      evaluate-models features a/ b/ --text sample.txt -o report
      evaluate-models features a/ b/ --task hans --align weights --lam 0.25 --lam 0.5 -o report
    """
    set_verbosity(options["verbose"], options["quiet"])
    from evals.inside.pair_pass import FeaturePlan
    from evals.tasks import find_task
    from merge.checkpoints.open import open_encoder
    from merge.recipe.recipe import make_align_entry

    shared = eval_options(options)
    check_formats(shared)
    check_device(shared.device)
    entry = align_entry(options)
    aligns = options["align"] not in (None, "none") or bool(options["apply"])
    check_one_source(options["task"], options["text"], aligns)
    if not aligns:  # then the text is that of the measurement alone
        entry = {name: value for name, value in entry.items() if name not in TEXT_FLAGS}
    task = None if options["task"] is None else find_task(options["task"])
    settings = make_align_entry(entry)
    plan = FeaturePlan(tuple(options["lam"]), tuple(options["site"]), options["llfc_only"])
    pair = open_encoder(a), open_encoder(b)
    show_inside(measure_features(pair, FeatureTexts(task, text_source(options)), settings, plan, shared), shared)
