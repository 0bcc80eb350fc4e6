"""The options that the studies of edited models share: what they are judged on, and how results are printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from evals.commands.options import data_options, model_options, table_option, threads_option
from evals.results.json_text import json_text
from evals.run.options import EvalOptions
from merge.commands.terminal import NAMES, common_options

if TYPE_CHECKING:
    from evals.run.inside.subject import Asked


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what every study of one model's layers takes: --task or --text, --score, --stack, --only, and the common options."""
    for add in (common_options, table_option, threads_option, model_options, data_options):
        command = add(command)
    for option in (
        click.option("--only", type=NAMES, metavar="PART,...", help="Parts of the study.  [default: all]"),
        click.option("--stack", default="", help="encoder or decoder, where a model has both."),
        click.option("--score", help="Score of the task that tables and figures lead with.  [default: its first]"),
        click.option("--samples", type=click.IntRange(min=1), help="Texts drawn from --text.  [default: 512]"),
        click.option("--text-column", type=NAMES, metavar="COL[,COL]", help="Column of --text; two for text pairs."),
        click.option(
            "--text",
            help="Text without labels: .txt, .jsonl, .csv, .tsv or a Hub dataset id.  [default: the package's own]",
        ),
        click.option("--task", help="A task: evaluate-models tasks lists them, or a TASK.yaml; else --text is read."),
    ):
        command = option(command)
    return command


def asked_of(options: Mapping[str, Any], shared: EvalOptions) -> Asked:
    """Return what a study is judged on.

    Raises:
        UsageError: rows and text do not fit one another, or there is no such task.
    """
    from evals.run.inside.subject import Asked, check_asked
    from evals.tasks import find_task
    from merge.text.source import TextSource

    samples = 512 if options["samples"] is None else options["samples"]
    text = TextSource(options["text"], options["text_column"], samples, options["seed"])
    task = None if options["task"] is None else find_task(options["task"])
    asked = Asked(task, text, options["stack"], options["score"])
    given = [f"--{n.replace('_', '-')}" for n in ("text", "text_column", "samples") if options[n] is not None]
    check_asked(asked, shared, given)
    return asked


def show_study(record: dict[str, Any], options: EvalOptions) -> None:
    """Print a record as tables or JSON, and write figures, tables and the page of the results folder."""
    from evals.commands.show import show_tables
    from evals.report.surgery.tables import TABLES, cost_lines
    from evals.report.surgery.verdict import verdict_lines

    if not options.quiet:
        for note in dict.fromkeys(record["notes"]):
            click.echo(f"note: {note}", err=True)
    if options.as_json:
        click.echo(json_text([record]))
    else:
        plain = options.table == "plain"
        if plain or not options.quiet:
            click.echo(f"{record['task']}: {record['data']}", err=not plain)
        for line in verdict_lines(record) if plain else ():
            click.echo(line)
        tables = list(TABLES[record["kind"]](record).values())
        for rows in tables if plain else ():
            show_tables([rows], "plain")
            click.echo("")
        if not plain:
            show_tables(tables, options.table)
        for line in cost_lines(record) if plain or not options.quiet else ():
            click.echo(line, err=not plain)
    if options.output:
        _illustrate(record, options)


def _illustrate(record: dict[str, Any], options: EvalOptions) -> None:
    from evals.report.page import write_page
    from evals.report.surgery.section import write_surgery_report
    from evals.results.store import STORE
    from merge.errors import OutputError, first_line

    folder = options.output
    assert folder is not None
    try:
        made = [folder / STORE, *write_surgery_report(record, folder), write_page(folder)]
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {first_line(error)}") from error
    if not options.quiet:
        click.echo(f"wrote {', '.join(map(str, made))}", err=True)
