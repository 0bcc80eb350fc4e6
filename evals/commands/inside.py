"""What the commands on the inside of models share: their options, and how a record is printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from evals.commands.show import show_tables
from evals.results.json_text import json_text
from evals.run.options import EvalOptions
from merge.commands.terminal import NAMES
from merge.errors import OutputError, first_line
from merge.text.source import TextSource

TEXT_FLAGS = ("text", "text_column", "samples")


def task_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --task, without which texts are read."""
    help_text = "Read the rows of a task (--data), and not --text: evaluate-models tasks lists them, or a TASK.yaml."
    return click.option("--task", help=help_text)(command)


def text_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --text, --text-column and --samples to a command that aligns nothing."""
    for add in (
        click.option(
            "--samples", type=click.IntRange(min=2), help="Number of texts drawn from --text.  [default: 512]"
        ),
        click.option("--text-column", type=NAMES, metavar="COL[,COL]", help="Column of --text; two for text pairs."),
        click.option(
            "--text", help="Text to run: .txt, .jsonl, .csv, .tsv, or a Hub dataset.  [default: the package's own]"
        ),
    ):
        command = add(command)
    return command


def text_source(options: Mapping[str, Any]) -> TextSource:
    """Return the sample of text that --text, --text-column, --samples and --seed ask for."""
    columns = options["text_column"]
    samples = options["samples"] or TextSource.samples
    return TextSource(options["text"], None if columns is None else tuple(columns), samples, options["seed"])


def show_inside(record: dict[str, Any], options: EvalOptions) -> None:
    """Print a record as tables or JSON, its notes on stderr; write figures, CSV tables and page of the results folder."""
    from evals.report.inside.section import inside_tables, inside_verdict, write_inside
    from evals.report.page import write_page

    if not options.quiet:
        for note in dict.fromkeys(record["notes"]):
            click.echo(f"note: {note}", err=True)
    if options.as_json:
        click.echo(json_text(record))
    else:
        plain = options.table == "plain"
        lines = [f"{record['task']}: {record['data']}", *inside_verdict(record)]
        for line in lines:
            if plain or not options.quiet:
                click.echo(line, err=not plain)
        show_tables(inside_tables(record), options.table)
    if options.output:
        try:
            made = [options.output / "results.json", *write_inside(record, options.output), write_page(options.output)]
        except OSError as error:
            raise OutputError(f"{options.output} cannot be written: {first_line(error)}") from error
        if not options.quiet:
            click.echo("wrote " + ", ".join(map(str, made)), err=True)
