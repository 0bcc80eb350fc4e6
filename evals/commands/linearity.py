"""The command that measures how linear the components of a model are, and whether its layers commute: linearity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evals.commands.options import check_formats, eval_options, sectioned_command
from evals.commands.study_options import asked_of, show_study, study_options
from merge.commands.terminal import MAX_COUNT, set_verbosity
from merge.errors import UsageError

FITS = ("closed", "cosine", "mse", "l2")  # those of evals.surgery.linearity, here without loading torch


@sectioned_command(short_help="How linear are a model's components? Do its layers commute?")
@click.argument("model")
@click.option(
    "--fit",
    type=click.Choice(FITS),
    default="closed",
    show_default=True,
    help="Linear maps in closed form, or trained as published with this loss.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, MAX_COUNT),
    default=3,
    show_default=True,
    help="Rounds of trained maps through the text.",
)
@click.option(
    "--cumulative/--no-cumulative",
    default=True,
    show_default=True,
    help="Replace components in more and more layers too.",
)
@click.option(
    "--draws",
    type=click.IntRange(1, MAX_COUNT),
    default=3,
    show_default=True,
    help="Shuffles for each number of fixed layers.",
)
@click.option(
    "--train",
    type=click.Path(path_type=Path),
    metavar="ROWS",
    help="Train on these rows of the task with components frozen, removed and replaced: a training for each.",
)
@click.option(
    "--tune-rounds",
    type=click.IntRange(1, MAX_COUNT),
    default=3,
    show_default=True,
    help="Rounds through the rows of --train.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=2e-5,
    show_default=True,
    help="Rate of these trainings.",
)
@study_options
def linearity(model: str, **options: Any) -> None:
    """Measure how linear the components of MODEL are, and whether its layers commute.

    The best linear map of each component (attention, feed-forward part, with and without the skip connection, and whole layers)
    is fitted on four texts of five and judged on the fifth: 1 - cosine, R2, error as a fraction of the norm, beside what the mean
    output and the skip connection alone give. Models are then scored with such maps in place of components (one layer, and more
    and more from the front and from the back), with components removed, with every pair of layers swapped, ranges reversed, and
    shuffled with k layers fixed.

    Parts of --only: components, replaced, swaps, reversals, shuffles.

    Source: Zhao et al. 2021, arXiv:2101.04547.

    \b
    Examples:
      evaluate-models linearity model/ --text sentences.txt --samples 2000 -o report
      evaluate-models linearity model/ --task mnli --data dev.jsonl --limit 500 --only swaps,reversals,shuffles
      evaluate-models linearity model/ --fit cosine --only components
      evaluate-models linearity model/ --task sst2 --data dev.tsv --train train.tsv
    """
    set_verbosity(options["verbose"], options["quiet"])
    from evals.run.inside.linearity import measure_linearity
    from evals.surgery.linearity import COMPONENTS, PARTS, REPLACED, LinearitySettings
    from merge.checkpoints.open import open_encoder

    shared = eval_options(options)
    check_formats(shared)
    asked = asked_of(options, shared)
    parts = PARTS if options["only"] is None else options["only"]
    if options["train"] and not {COMPONENTS, REPLACED} & set(parts):
        raise UsageError("--train replaces components by linear maps: let --only have components or replaced too.")
    settings = LinearitySettings(
        parts=parts,
        tune_rate=options["rate"],
        **{name: options[name] for name in ("fit", "rounds", "cumulative", "draws", "tune_rounds", "seed")},
    )
    show_study(measure_linearity(open_encoder(model), asked, settings, shared, options["train"]), shared)
