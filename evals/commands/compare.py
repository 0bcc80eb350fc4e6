"""evaluate-models compare: paired differences between the models of a results folder."""

from __future__ import annotations

import json
from pathlib import Path

import click

from evals.commands.options import SETTINGS
from merge.commands.terminal import common_options, set_verbosity
from merge.errors import UsageError

FORMATS = ("table", "markdown", "csv")


@click.command(context_settings=SETTINGS, short_help="Compare the models of a results folder, row by row.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("task")
@click.option("--against", metavar="MODEL", help="Compare every other model with this one only.  [default: all pairs]")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="Form of the table."
)
@common_options
def compare(folder: Path, task: str, against: str | None, form: str, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Compare the models that FOLDER holds scores of on TASK, row by row: differences, intervals, McNemar's test.

    FOLDER is what -o named when the models were scored. A model's name is as it was typed then.

    \b
    Examples:
      evaluate-models compare report mnli
      evaluate-models compare report hans --against merged/ --format csv
    """
    from evals.report.tables import comparison_rows, csv_table, markdown_table, plain_table
    from evals.results.compare import compare_models

    set_verbosity(verbose, quiet)
    if as_json and form != "table":
        raise UsageError(f"--format {form} and --json are two forms of one answer; choose one.")
    found = compare_models(folder, task, against)
    pairs = len({(one.a, one.b, one.data) for one in found})
    if pairs > 1 and not quiet:
        click.echo(f"note: {pairs} pairs are compared; the p values are those of one test each", err=True)
    if as_json:
        text = json.dumps([one.to_json() for one in found])
        click.echo(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2))
    else:
        show = {"table": plain_table, "markdown": markdown_table, "csv": csv_table}[form]
        click.echo(show(comparison_rows(found)).rstrip("\n"))
