"""The command that measures how alike two models represent texts: similarity."""

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
from evals.run.inside.similarity import BY, MAX_ROWS, MEASURE_NAMES, SimilarityPlan, measure_similarity
from evals.run.inside.texts import FeatureTexts, check_one_source
from merge.commands.terminal import common_options, set_verbosity
from merge.errors import UsageError


@sectioned_command(short_help="Measure how alike two models represent texts, layer by layer.")
@click.argument("a")
@click.argument("b")
@task_option
@click.option(
    "--rows",
    "by",
    type=click.Choice(BY),
    default=BY[0],
    show_default=True,
    help="A row a text (the mean over its tokens), or a row a token: then both models must read the same tokens.",
)
@click.option(
    "--site",
    multiple=True,
    metavar="SITE",
    help='A site ("layer 3 output") or a kind of sites ("ffn hidden"), several times.  [default: embeddings and every layer]',
)
@click.option(
    "--measure",
    "measures",
    multiple=True,
    type=click.Choice(MEASURE_NAMES),
    help="A measure, several times.  [default: all]",
)
@click.option(
    "--max-rows",
    "most",
    type=click.IntRange(min=8),
    default=MAX_ROWS,
    show_default=True,
    help="Compare at most so many rows; they bound the memory.",
)
@text_options
@data_options
@model_options
@threads_option
@table_option
@common_options
def similarity(a: str, b: str, **options: Any) -> None:
    """Measure how alike A and B represent the same texts: every layer of A against every layer of B.

    CKA (linear, and debiased), orthogonal Procrustes, the best permutation of units, SVCCA and mutual nearest neighbours, each
    with its standard error over halves of the texts and with what rows in random order give. The models may be of different
    widths, depths, families and tokenizers.

    \b
    Examples:
      evaluate-models similarity a/ b/ --text sample.txt -o report
      evaluate-models similarity a/ b/ --rows tokens --measure "debiased cka" --site "ffn hidden"
    """
    set_verbosity(options["verbose"], options["quiet"])
    from evals.tasks import find_task
    from merge.checkpoints.open import open_encoder

    shared = eval_options(options)
    check_formats(shared)
    check_one_source(options["task"], options["text"], False)
    if shared.labels is not None:
        raise UsageError("--labels names classes, and similarity reads no labels: leave it out.")
    task = None if options["task"] is None else find_task(options["task"])
    plan = SimilarityPlan(
        options["by"], tuple(options["site"]), tuple(options["measures"]) or MEASURE_NAMES, options["most"]
    )
    pair = open_encoder(a), open_encoder(b)
    show_inside(measure_similarity(pair, FeatureTexts(task, text_source(options)), plan, shared), shared)
