"""What the commands of evaluate-models share: their options, results kept in a folder, and how an answer is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge.errors import UsageError

if TYPE_CHECKING:
    from evals.tasks.task import EvalTask, Rows

TABLES = ("plain", "markdown", "csv")
SETTINGS = {"help_option_names": ["-h", "--help"]}


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --data, --labels, --limit, --seed, -o and --force."""
    for option in (
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            help="File or folder of rows; else the task's own source.",
        ),
        click.option("--labels", metavar="NAME,...", help="Class names in the order of the logits."),
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
    device = click.option(
        "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where models compute."
    )
    cache = click.option("--no-cache", is_flag=True, help="Tokenise anew; read and keep no tokens.")
    return device(cache(command))


def table_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --table."""
    return click.option(
        "--table", type=click.Choice(TABLES), default="plain", show_default=True, help="Form of the tables."
    )(command)


def check_forms(options: dict[str, Any], official: bool = False) -> None:
    """Refuse two forms of one answer."""
    said = [
        name
        for name, asked in (
            ("--format official", official),
            (f"--table {options['table']}", options["table"] != "plain"),
            ("--json", options["as_json"]),
        )
        if asked
    ]
    if len(said) > 1:
        raise UsageError(f"{' and '.join(said)} are two forms of one answer; choose one.")


def check_device(options: dict[str, Any]) -> None:
    """Refuse --device cuda where there is no GPU, before anything is read."""
    if options["device"] != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no GPU on this machine. Leave it out to compute on the CPU.")


def read_rows(task: EvalTask, options: dict[str, Any]) -> Rows:
    """Return the rows that the options ask for."""
    return task.read(options["data"], options["seed"]).sample(options["limit"], options["seed"])


def listed(text: str | None, option: str) -> tuple[str, ...] | None:
    """Return the names of a comma-separated option."""
    if text is None:
        return None
    parts = tuple(part.strip() for part in text.split(","))
    if "" in parts:
        raise UsageError(f"{option} expects names separated by commas, found {text!r}.")
    return parts


def known_results(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results that need not be computed again."""
    from evals.results.store import load_results

    if not options["output"]:
        return []
    stored = load_results(options["output"])
    return [] if options["force"] else stored


def stored_result(
    known: Sequence[dict[str, Any]], key: str, said: dict[str, Any], output: Path | None
) -> dict[str, Any] | None:
    """Return the result of that key, None if there is none; models and data go by the names of this run."""
    from evals.results.store import add_result, find

    found = find(known, key)
    if found is None:
        return None
    told = {**found, **said}
    if output and told != found:
        add_result(output, told)
    return told
