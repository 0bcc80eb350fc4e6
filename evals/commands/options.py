"""The options that the commands of evaluate-models share, and the record that they are read into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge.commands.terminal import NAMES
from merge.errors import UsageError

if TYPE_CHECKING:
    from evals.tasks.task import EvalTask, Rows

TABLES = ("plain", "markdown", "csv")
SETTINGS = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True)
class EvalOptions:
    """The shared options; one that a command does not have keeps its default.

    Attributes:
        data: file or folder of rows; None for the task's own source.
        labels: class names of every model in the order of its logits; None for those of its config.
        limit: how many rows are drawn at random; None for all.
        seed: of the draw, of generated rows and of the bootstrap.
        output: the results folder; None to store nothing.
        force: compute what the results folder already holds.
        dtype: what models compute in, by its name in torch.
        table: one of TABLES.
        detail: print HANS by subcase and template too.
    """

    data: Path | None = None
    labels: tuple[str, ...] | None = None
    limit: int | None = None
    seed: int = 0
    output: Path | None = None
    force: bool = False
    device: str = "cpu"
    no_cache: bool = False
    dtype: str = "float32"
    table: str = "plain"
    as_json: bool = False
    detail: bool = False
    quiet: bool = False


def eval_options(options: Mapping[str, Any]) -> EvalOptions:
    """Return the shared options among those of a command, by parameter name."""
    return EvalOptions(**{field.name: options[field.name] for field in fields(EvalOptions) if field.name in options})


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --data, --labels, --limit, --seed, -o and --force."""
    for option in (
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            help="File or folder of rows; else the task's own source.",
        ),
        click.option("--labels", type=NAMES, metavar="NAME,...", help="Class names in the order of the logits."),
        click.option("--limit", type=click.IntRange(min=1), help="Evaluate on this many rows drawn at random."),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draw and of generated rows."),
        click.option(
            "-o", "--output", type=click.Path(path_type=Path), help="Folder for results.json, figures and the page."
        ),
        click.option("--force", is_flag=True, help="Compute again what results.json already holds."),
    ):
        command = option(command)
    return command


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --device and --no-cache."""
    device = click.option("--device", default="cpu", show_default=True, help="Where models compute, such as cuda.")
    cache = click.option("--no-cache", is_flag=True, help="Tokenize again, and keep no tokens in the cache.")
    return device(cache(command))


def table_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --table."""
    return click.option(
        "--table", type=click.Choice(TABLES), default="plain", show_default=True, help="Format of the tables."
    )(command)


def check_formats(options: EvalOptions, official: bool = False) -> None:
    """Stop where more than one output format is chosen.

    Args:
        official: whether --format official is.
    """
    chosen = [
        flag
        for flag, given in (
            ("--format official", official),
            (f"--table {options.table}", options.table != "plain"),
            ("--json", options.as_json),
        )
        if given
    ]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} are two formats of one output; choose one.")


def read_rows(task: EvalTask, options: EvalOptions) -> Rows:
    """Return the rows of a task that the options select."""
    return task.read(options.data, options.seed).sample(options.limit, options.seed)


def stored_results(options: EvalOptions) -> list[dict[str, Any]]:
    """Return the records of the results folder that need not be computed again: none with --force."""
    from evals.results.store import load_results

    if not options.output:
        return []
    records = load_results(options.output)  # with --force too: a malformed store stops the command before it computes
    return [] if options.force else records


def reuse_result(
    records: Sequence[dict[str, Any]], key: str, names: Mapping[str, Any], output: Path | None
) -> dict[str, Any] | None:
    """Return the record with a key, or None; its names of models and data become those of this run, in the store too."""
    from evals.results.store import add_result, find

    record = find(records, key)
    if record is None:
        return None
    renamed = {**record, **names}
    if output and renamed != record:
        add_result(output, renamed)
    return renamed
