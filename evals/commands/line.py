"""The command that summarises the loss along the line from one model to another in every way of the field: line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evals.commands.options import check_formats, eval_options, line_options, sectioned_command
from evals.commands.show import show
from evals.run.line import HEAD_NAMES, TaskData, measure_line
from merge.checkpoints.weights.arrays import check_device
from merge.commands.align_options import align_entry
from merge.commands.terminal import set_verbosity
from merge.errors import UsageError

if TYPE_CHECKING:
    from evals.run.options import EvalOptions


@sectioned_command(short_help="Summarise the line from A to B in every way of the field.")
@click.argument("a")
@click.argument("b")
@click.option("--task", required=True, help="A task: evaluate-models tasks lists them, or a TASK.yaml.")
@click.option(
    "--also",
    multiple=True,
    metavar="TASK[=DATA]",
    help="A further task, measured in the same weights; DATA is its file or folder, else the task's own source.",
)
@click.option(
    "--head",
    multiple=True,
    type=click.Choice(HEAD_NAMES),
    default=("both",),
    help="Interpolate both classifier heads, keep that of A, or refit the last layer at every point; several give a line each.  "
    "[default: both]",
)
@click.option("--adaptive", is_flag=True, help="Measure more points where a curve bends.")
@line_options
def line(a: str, b: str, **options: Any) -> None:
    """Summarise the loss along the straight line from A to B, naive and aligned side by side.

    Error barrier, loss barrier, barrier over the mean, epsilon, convexity gap, area, mean loss and distance, each with its paired
    standard error, the point where it is, and the paper that defines it. The loss is the cross-entropy, or the squared error
    where the task asks for a number (stsb). --data holds the rows of --task.

    \b
    Examples:
      evaluate-models line a/ b/ --task mnli --data dev.jsonl --also hans -o report
      evaluate-models line a/ b/ --task hans --head both --head A --head refit --adaptive
    """
    set_verbosity(options["verbose"], options["quiet"])
    from evals.paths.pair_lines import LinePlan
    from merge.checkpoints.open import open_encoder
    from merge.recipe.recipe import make_align_entry

    shared = eval_options(options)
    check_formats(shared)
    check_device(shared.device)
    asked = _asked(options["task"], options["also"], shared)
    settings = make_align_entry(align_entry(options))
    plan = LinePlan(options["points"], options["head"], options["adaptive"])
    pair = open_encoder(a), open_encoder(b)
    show(measure_line(pair, asked, settings, plan, shared), shared, "line")


def _asked(task: str, also: Sequence[str], options: EvalOptions) -> list[TaskData]:
    """Return the data sets: that of --task, then one for each --also TASK or TASK=DATA."""
    from evals.tasks import find_task

    asked = [TaskData(find_task(task), options.data)]
    for entry in also:
        name, equals, path = entry.partition("=")
        if not name or (equals and not path):
            raise UsageError(f"--also expects TASK or TASK=DATA, found {entry!r}.")
        asked.append(TaskData(find_task(name), Path(path) if path else None))
    return asked
