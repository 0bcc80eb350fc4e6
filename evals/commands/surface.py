"""Print the record of a plane, a curve, a simplex or an interpolation from the start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from evals.commands.show import show_record
from evals.run.options import EvalOptions
from evals.run.surface.learning import MAX_STEPS, Learning
from merge.errors import Interrupted

# Those of evals.paths.surface.points and evals.run.surface.checkpoints, here without loading torch.
FOLDER, TRAINED = "surface", "*/*/surface.json"
KEPT = "interrupted; what was done is kept in {}, and the same command goes on from there"


def learning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that trains points: --train, --train-steps, --rate and --rows-a-step."""
    for option in (
        click.option(
            "--train",
            type=click.Path(path_type=Path),
            help="File or folder of labelled rows that points are trained on; --data only measures.",
        ),
        click.option(
            "--train-steps", type=click.IntRange(1, MAX_STEPS), default=200, show_default=True, help="Steps of Adam."
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
    """Say on Ctrl-C whether the results folder keeps points, trained ones or measured ones.

    Raises:
        Interrupted: it does.
    """
    try:
        yield
    except KeyboardInterrupt:
        if options.output and _keeps_points(options.output):
            raise Interrupted(KEPT.format(options.output)) from None
        raise


def _keeps_points(folder: Path) -> bool:
    """Return whether a results folder has measured points, the state of a training, or points that were trained."""
    return any(not each.name.startswith(".") for each in [*folder.glob(f"{FOLDER}/*"), *folder.glob(TRAINED)])


def show_surface(record: dict[str, Any], options: EvalOptions) -> None:
    """Show the record of a plane, a curve, a simplex or an interpolation from the start."""
    from evals.report.surface.section import surface_tables, write_surface

    show_record(record, options, surface_tables(record), write_surface)
