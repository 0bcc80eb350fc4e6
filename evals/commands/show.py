"""Print results as tables or JSON."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evals.results.json_text import json_text
from evals.run.options import EvalOptions
from merge.errors import OutputError, first_line

if TYPE_CHECKING:
    from evals.report.table_text import Row

Record = dict[str, Any]

# Wide headers of tables of what is inside models take several lines.
TERMINAL_WIDTH = 80


def show(records: Sequence[dict[str, Any]], options: EvalOptions, kind: str) -> None:
    """Print the results, and rewrite figures and page of the results folder.

    Args:
        kind: scores, hans, barrier, line, or official (the text of the HANS authors' scorer).
    """
    from evals.heuristics.scores import HansTable, official_text
    from evals.report.tables import SHORT_NAMES

    if not options.quiet:
        for note in dict.fromkeys(note for record in records for note in record["notes"]):
            click.echo(f"note: {note}", err=True)
    if options.as_json:
        click.echo(json_text(list(records)))
    elif kind == "official":
        click.echo(official_text(HansTable.from_json(records[0]["hans"])), nl=False)
    else:
        plain = options.table == "plain"
        for line in dict.fromkeys(f"{record['task']}: {record['data']}" for record in records):
            if plain or not options.quiet:
                click.echo(line, err=not plain)  # Markdown and CSV hold the table alone
        show_tables(_tables(records, kind, options), options.table)
        if plain and not options.quiet and any(record.get("hans") for record in records):
            click.echo(f"note: {SHORT_NAMES}", err=True)
    if options.output:
        _illustrate(options.output, records, kind, options.quiet)


def _tables(records: Sequence[dict[str, Any]], kind: str, options: EvalOptions) -> list[list[Row]]:
    from evals.report.tables import barrier_rows, hans_rows, line_rows, part_rows, score_rows

    if kind == "line":
        return [line_rows(record) for record in records]
    hans = partial(hans_rows, short=options.table == "plain")
    rows_of: dict[str, Callable[..., list[Row]]] = {"hans": hans, "scores": score_rows, "barrier": barrier_rows}
    tables = [rows_of[kind](records)]
    if kind == "scores" and any(record.get("hans") for record in records):
        tables.append(hans(records))
    if kind == "hans" and options.detail:
        tables += [part_rows(records, part) for part in ("subcases", "templates")]
    return tables


def show_tables(tables: Sequence[list[Row]], form: str, width: int | None = None) -> None:
    """Print tables as text in columns, as Markdown or as CSV; an empty line parts them, but for text without a width.

    Args:
        width: of text, for which wide headers take several lines; on a terminal its own, into which every table fits.
    """
    from evals.report.table_text import csv_table, markdown_table, plain_table

    if form == "plain":
        between, terminal = "\n" if width is None else "\n\n", sys.stdout.isatty()
        if terminal:
            width = shutil.get_terminal_size().columns
        click.echo(between.join(plain_table(rows, width, terminal).rstrip("\n") for rows in tables))
    else:
        shown = {"markdown": markdown_table, "csv": csv_table}[form]
        click.echo("\n\n".join(shown(rows).rstrip("\n") for rows in tables))


def _illustrate(folder: Path, records: Sequence[dict[str, Any]], kind: str, quiet: bool) -> None:
    from evals.report.barrier_figure import barrier_plot
    from evals.report.hans_figure import hans_plot
    from evals.report.page import write_page
    from evals.results.store import load_results
    from merge.publish.results_file import SETTING

    made: list[Path] = []
    if kind in ("barrier", "line"):
        for record in records:
            made += barrier_plot(record, folder / f"{kind}-{_short(record)}")
    if pairs := [record for record in records if record.get("hans")]:
        # One figure compares models on the same rows.
        alike = [r for r in load_results(folder) if r.get("hans") and all(r[n] == pairs[0][n] for n in SETTING)]
        made += hans_plot(alike, folder / "hans")
    made.append(write_page(folder))
    if not quiet:
        click.echo("wrote " + ", ".join(str(path) for path in [folder / "results.json", *made]), err=True)


def _short(record: dict[str, Any]) -> str:
    return f"{record['task']}-{record['key'].rsplit('-', 1)[-1][:8]}"


def show_record(
    record: Record,
    options: EvalOptions,
    tables: Sequence[list[Row]],
    write: Callable[[Record, Path], Sequence[Path]],
    verdict: Sequence[str] = (),
    cost: Sequence[str] = (),
    width: int | None = None,
) -> None:
    """Print a record as tables or JSON, its notes on stderr; write figures, tables and page of the results folder.

    Args:
        write: the figures and tables of the record into the folder of results.json; returns the paths.
        verdict, cost: lines before the tables and after them; beside Markdown and CSV they go to stderr.
        width: of tables as text.
    """
    plain = options.table == "plain"

    def tell(lines: Sequence[str]) -> None:
        for line in lines if plain or not options.quiet else ():
            click.echo(line, err=not plain)

    if not options.quiet:
        for note in dict.fromkeys(record["notes"]):
            click.echo(f"note: {note}", err=True)
    if options.as_json:
        click.echo(json_text(record))
    else:
        tell([f"{record['task']}: {record['data']}", *verdict])
        show_tables(tables, options.table, width)
        tell(cost)
    if options.output:
        from evals.report.page import write_page

        try:
            made = [options.output / "results.json", *write(record, options.output), write_page(options.output)]
        except OSError as error:
            raise OutputError(f"{options.output} cannot be written: {first_line(error)}") from error
        if not options.quiet:
            click.echo("wrote " + ", ".join(map(str, made)), err=True)


def show_inside(record: Record, options: EvalOptions) -> None:
    """Show the record of features, similarity or stitches."""
    from evals.report.inside.section import inside_tables, inside_verdict, write_inside

    show_record(record, options, inside_tables(record), write_inside, inside_verdict(record), width=TERMINAL_WIDTH)
