"""Print the record of a plane, a curve, a simplex or an interpolation from the start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from evals.commands.show import show_tables
from evals.results.json_text import json_text
from evals.run.options import EvalOptions
from evals.run.surface.learning import Learning
from merge.errors import OutputError, first_line

FOLDER = "surface"  # that of evals.paths.surface.points, here without loading torch


def learning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that trains points: --train, --train-steps, --rate and --rows-a-step."""
    for option in (
        click.option(
            "--train",
            type=click.Path(path_type=Path),
            help="File or folder of labelled rows that points are trained on; --data only measures.",
        ),
        click.option(
            "--train-steps", type=click.IntRange(min=1), default=200, show_default=True, help="Steps of Adam."
        ),
        click.option(
            "--rate", type=float, default=1e-4, show_default=True, help="Learning rate; it falls linearly to 0."
        ),
        click.option(
            "--rows-a-step", type=click.IntRange(min=1), default=32, show_default=True, help="Labelled rows of a step."
        ),
    ):
        command = option(command)
    return command


def learning_of(options: Mapping[str, Any]) -> Learning:
    """Return how points are trained by the options of a command."""
    return Learning(options["train"], options["train_steps"], options["rate"], options["rows_a_step"])


@contextmanager
def kept_on_interruption(options: EvalOptions) -> Iterator[None]:
    """Say on Ctrl-C that the results folder keeps what was measured."""
    try:
        yield
    except KeyboardInterrupt:
        if options.output and (options.output / FOLDER).is_dir():
            click.echo(f"what was done is kept in {options.output}; the same command goes on from there", err=True)
        raise


def show_surface(record: dict[str, Any], options: EvalOptions) -> None:
    """Print a record as tables or JSON, its notes on stderr; write figures and page of the results folder."""
    from evals.report.page import write_page
    from evals.report.surface.section import surface_tables, write_surface

    if not options.quiet:
        for note in dict.fromkeys(record["notes"]):
            click.echo(f"note: {note}", err=True)
    if options.as_json:
        click.echo(json_text(record))
    else:
        plain = options.table == "plain"
        if plain or not options.quiet:
            click.echo(f"{record['task']}: {record['data']}", err=not plain)
        show_tables(surface_tables(record), options.table)
    if options.output:
        try:
            made = [options.output / "results.json", *write_surface(record, options.output), write_page(options.output)]
        except OSError as error:
            raise OutputError(f"{options.output} cannot be written: {first_line(error)}") from error
        if not options.quiet:
            click.echo("wrote " + ", ".join(map(str, made)), err=True)
