"""The command that measures the lines between all pairs of many models: basins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evals.commands.options import (
    check_formats,
    data_options,
    eval_options,
    model_options,
    sectioned_command,
    table_option,
)
from evals.commands.show import show_tables
from evals.commands.surface import KEPT
from evals.results.json_text import json_text
from evals.run.basins import PAIRS, illustrate_basins, measure_basins
from evals.run.basins_plan import ALIGN_TO, AskedDiagnostic, BasinsPlan, asked_diagnostic
from merge.checkpoints.weights.arrays import check_device
from merge.commands.align_options import align_entry, align_options_but
from merge.commands.terminal import MAX_COUNT, common_options, set_verbosity
from merge.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from evals.run.options import EvalOptions
    from merge.text.source import TextSource

DISTANCES = ("line", "stitching")
BACKENDS = ("loky", "ray", "dask")  # those of evals.clusters.sweep.workers, here without loading torch


@sectioned_command(short_help="Measure all pairs of many models: which are linearly connected?")
@click.argument("models", nargs=-1)
@click.option("--task", required=True, help="A task: evaluate-models tasks lists them, or a TASK.yaml.")
@click.option(
    "--diagnostic",
    multiple=True,
    metavar="TASK[:SCORE][=DATA]",
    help="A further score of every model; of hans also hans_lo, a heuristic, HEURISTIC/LABEL or a subcase. --limit applies.",
)
@click.option(
    "--reference",
    "references",
    multiple=True,
    metavar="MODEL",
    help="Measure every model against this one, not all pairs; several may be named.",
)
@align_options_but("reference", "apply", "repair")
@click.option(
    "--align-to",
    type=click.Choice(ALIGN_TO),
    default="pair",
    show_default=True,
    help="Align each pair by itself, or every model to the first --reference (else the first model): a pair then costs none.",
)
@click.option(
    "--points", type=click.IntRange(3, MAX_COUNT), default=11, show_default=True, help="Points of the even grid."
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Processes that share the pairs, of one thread each.  [default: one a core, or one a GPU]",
)
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="loky",
    show_default=True,
    help="Where processes run: this machine, or a cluster of Ray or Dask.",
)
@click.option("--summary", help="What the distance of two models is, such as 'loss barrier'.  [default: convexity gap]")
@click.option(
    "--distance",
    type=click.Choice(DISTANCES),
    default="line",
    show_default=True,
    help="What --summary is of: the line between the weights, or stitches of A's lower to B's upper layers, at every depth.",
)
@click.option(
    "--method", help="How models are clustered: average, single, complete, rows, spectral, ....  [default: average]"
)
@click.option(
    "--clusters", metavar="NUMBER", help="How many, or auto, silhouette or gap, which choose.  [default: auto]"
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="The largest barrier inside a basin.  [default: .05 of the loss, .02 of the error]",
)
@click.option(
    "--verify",
    type=click.IntRange(min=0),
    default=0,
    metavar="K",
    help="Average the K best ranked subsets and measure them.",
)
@click.option(
    "--dry-run", is_flag=True, help="Measure one point of the first pair, print what the sweep will cost, and stop."
)
@data_options
@model_options
@table_option
@common_options
def basins(models: tuple[str, ...], **options: Any) -> None:
    """Measure the loss along the straight lines between all pairs of MODELS, naive and aligned side by side.

    Which fine-tuned models share a basin of the loss, and may be averaged? The losses of every row at every point are kept in
    the folder of -o, one file a pair: a sweep that was killed goes on where it stopped, and further models cost their own pairs
    only. MODELS are folders, Hub ids, or the checkpoints of one training run (run/checkpoint-*).

    \b
    Examples:
      evaluate-models basins zoo/* --task mnli --diagnostic hans:hans_lo -o report
      evaluate-models basins zoo/* --task mnli --data dev.jsonl --limit 500 --dry-run
      evaluate-models basins run/checkpoint-* --task qqp --diagnostic paws_qqp:f1 -o report
      evaluate-models basins zoo/* --task mnli --align weights --align-to reference --processes 8 -o report
      evaluate-models basins zoo/* --task mnli --distance stitching --text sample.txt -o report
    """
    set_verbosity(options["verbose"], options["quiet"])
    from merge.checkpoints.open import open_encoder
    from merge.recipe.recipe import make_align_entry

    shared = eval_options(options)
    check_formats(shared)
    check_device(shared.device)
    from evals.tasks import find_task

    task = find_task(options["task"])
    plan = BasinsPlan(
        points=options["points"],
        diagnostics=tuple(map(_diagnostic, options["diagnostic"])),
        references=options["references"],
        align_to=options["align_to"],
        processes=options["processes"],
        backend=options["backend"],
        verify=options["verify"],
        analysis=_analysis(options),
        dry_run=options["dry_run"],
        text=_text_of_stitches(options, shared.seed),
    )
    settings = make_align_entry(align_entry(options))
    try:
        measured = measure_basins(list(map(open_encoder, models)), task, settings, plan, shared, _teller(plan, shared))
    except KeyboardInterrupt:
        from evals.clusters.sweep.records import FOLDER

        if shared.output and (shared.output / FOLDER).is_dir():
            raise Interrupted(KEPT.format(shared.output)) from None
        raise
    if isinstance(measured, tuple):
        _show(measured[0], shared)
    elif shared.as_json:
        click.echo(json_text(measured.to_json()))


def _diagnostic(text: str) -> AskedDiagnostic:
    """Return the diagnostic that TASK[:SCORE][=DATA] asks for."""
    named, equals, path = text.partition("=")
    if equals and not path:
        raise UsageError(f"--diagnostic expects TASK, TASK:SCORE or TASK:SCORE=DATA, found {text!r}.")
    return asked_diagnostic(named, Path(path) if path else None)


def _text_of_stitches(options: dict[str, Any], seed: int) -> TextSource | None:
    """Return what stitches are fitted on where no alignment reads a text, and take its options away; else None."""
    from merge.commands.align_options import FLAGS
    from merge.text.source import TextSource

    given = align_entry(options)
    if "stitching" not in (options["distance"], options["summary"]) or given.get("by", "none") != "none":
        return None
    values = {name: given.get(name) for name in ("text", "text_column", "samples")}
    options |= {flag: None for flag, name in FLAGS.items() if name in values}
    return TextSource(values["text"], values["text_column"], values["samples"] or TextSource.samples, seed)


def _analysis(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the analysis that were given."""
    clusters = options["clusters"]
    if clusters is not None and clusters.isdecimal():
        clusters = int(clusters)
    named = {"summary": options["summary"], "method": options["method"], "number": clusters}
    named["tolerance"] = options["tolerance"]
    if options["distance"] == "stitching":
        if options["summary"] not in (None, "stitching"):
            raise UsageError(
                f"--summary {options['summary']} is of the line between weights, not of --distance stitching."
            )
        named["summary"] = "stitching"
    return {name: value for name, value in named.items() if value is not None}


def _teller(plan: BasinsPlan, options: EvalOptions) -> Any:
    """Return what prints a line of the estimate: the answer of a dry run, else a note on stderr."""
    if plan.dry_run:
        return (lambda _line: None) if options.as_json else click.echo
    return (lambda _line: None) if options.quiet else (lambda line: click.echo(line, err=True))


def _show(record: dict[str, Any], options: EvalOptions) -> None:
    """Print the record as tables or JSON, and its notes on stderr."""
    from evals.report.basins_tables import MOST_PAIRS, SHOWN, model_rows, pair_rows, verdict_lines

    if not options.quiet:
        for note in dict.fromkeys(record["notes"]):
            click.echo(f"note: {note}", err=True)
    if options.as_json:
        click.echo(json_text(record))
    else:
        plain = options.table == "plain"
        most = MOST_PAIRS if plain else None
        if plain or not options.quiet:
            click.echo(f"{record['task']}: {record['data']}", err=not plain)
        for line in verdict_lines(record) if plain else ():
            click.echo(line)
        tables: Sequence[Any] = [model_rows(record), pair_rows(record, SHOWN, most)]
        show_tables(tables, options.table)
        if most and len(record["pairs"]) > most and not options.quiet:
            click.echo(
                f"note: the {most} of {len(record['pairs']):,} pairs with the largest gaps; {PAIRS} has all", err=True
            )
    if options.output:
        from evals.results.store import BASINS  # imports pydantic, for which --help does not wait

        made = [options.output / BASINS, options.output / PAIRS, *illustrate_basins(record, options.output)]
        if not options.quiet:
            click.echo(f"wrote {', '.join(map(str, made))}", err=True)
