"""evaluate-models compare: paired differences between the models of a results folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from evals.commands.options import check_formats, eval_options, sectioned_command, table_option
from evals.commands.show import show_tables
from evals.results.json_text import json_text
from merge.commands.terminal import common_options, set_verbosity
from merge.errors import UsageError

# --format is the older name of --table, and `table` that of plain.
FORMATS = ("table", "markdown", "csv")


@sectioned_command(short_help="Compare the models of a results folder, row by row.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("task")
@click.option("--against", metavar="MODEL", help="Compare every other model with this one only.  [default: all pairs]")
@click.option("--format", "old_format", type=click.Choice(FORMATS), hidden=True)
@table_option
@common_options
def compare(folder: Path, task: str, against: str | None, old_format: str | None, **options: Any) -> None:
    """Compare the models that FOLDER holds scores of on TASK, row by row: differences, intervals, McNemar's test.

    FOLDER is the -o folder of the scoring run, and MODEL a model's name as it was typed there.

    \b
    Examples:
      evaluate-models compare report mnli
      evaluate-models compare report hans --against merged/ --table csv
    """
    set_verbosity(options["verbose"], options["quiet"])
    from evals.report.tables import comparison_rows
    from evals.results.compare import compare_models, uncompared

    shared = eval_options(options)
    if old_format not in (None, "table"):
        if shared.table not in ("plain", old_format):
            raise UsageError(
                f"--format {old_format} and --table {shared.table} are two formats of one output; choose one."
            )
        shared = replace(shared, table=old_format)
    check_formats(shared)
    comparisons = compare_models(folder, task, against)
    pairs = len({(comparison.a, comparison.b, comparison.data) for comparison in comparisons})
    if pairs > 1 and not shared.quiet:
        click.echo(f"note: {pairs} pairs are compared; the p values are not corrected for that", err=True)
    for note in [] if shared.quiet else uncompared(folder, task, comparisons):
        click.echo(f"note: {note}", err=True)
    if shared.as_json:
        click.echo(json_text([comparison.to_json() for comparison in comparisons]))
    else:
        show_tables([comparison_rows(comparisons)], shared.table)
