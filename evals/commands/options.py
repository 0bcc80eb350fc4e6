"""The options that the commands of evaluate-models share, and the record that they are read into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evals.run.options import EvalOptions
from merge.commands.align_options import FLAGS, align_options
from merge.commands.sections import SectionedCommand
from merge.commands.terminal import MAX_COUNT, NAMES, common_options
from merge.errors import UsageError

if TYPE_CHECKING:
    from merge.text.source import TextSource

TABLES = ("plain", "markdown", "csv")
# Those of options that say which text is read.
TEXT_FLAGS = ("text", "text_column", "samples")
SETTINGS = {"help_option_names": ["-h", "--help"]}
# Sections of every command's --help: title -> parameter names. The options that a command has alone are its settings.
SECTIONS = {
    "Task and rows": ("task", "data", "labels", "limit", "max_length", "seed"),
    "Text": TEXT_FLAGS,
    "Settings": (),
    "Alignment": tuple(name for name in FLAGS if name not in TEXT_FLAGS),
    "Output": ("output", "force", "table", "as_json", "dry_run"),
    "Run": ("device", "threads", "dtype", "no_cache", "processes", "backend", "quiet", "verbose"),
}


def sectioned_command(**settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator that makes a function a command of evaluate-models."""
    return click.command(cls=SectionedCommand, sections=SECTIONS, context_settings=SETTINGS, **settings)


def eval_options(options: Mapping[str, Any]) -> EvalOptions:
    """Return the shared options among those of a command, by parameter name."""
    return EvalOptions(**{field.name: options[field.name] for field in fields(EvalOptions) if field.name in options})


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --data, --labels, --limit, --max-length, --seed, -o and --force."""
    for option in (
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            help="File or folder of rows; else the task's own source.",
        ),
        click.option("--labels", type=NAMES, metavar="NAME,...", help="Class names in the order of the logits."),
        click.option("--limit", type=click.IntRange(min=1), help="Evaluate on this many rows drawn at random."),
        click.option(
            "--max-length",
            type=click.IntRange(min=1),
            metavar="TOKENS",
            help="Cut longer rows to this many tokens.  [default: what each model takes]",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draw and of generated rows."),
        click.option(
            "-o", "--output", type=click.Path(path_type=Path), help="Folder for results.json, figures and the page."
        ),
        click.option("--force", is_flag=True, help="Compute again what results.json already holds."),
    ):
        command = option(command)
    return command


def line_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that measures the line between two models."""
    points = click.option(
        "--points",
        type=click.IntRange(3, MAX_COUNT),
        default=11,
        show_default=True,
        help="Points on the even grid of the line, endpoints included.",
    )
    for add in (common_options, table_option, threads_option, model_options, data_options, points, align_options):
        command = add(command)
    return command


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --device and --no-cache."""
    device = click.option("--device", default="cpu", show_default=True, help="Where models compute, such as cuda.")
    cache = click.option("--no-cache", is_flag=True, help="Tokenize again, and keep no tokens in the cache.")
    return device(cache(command))


def threads_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --threads, which `merge.commands.terminal.start` reads before numerical libraries are imported."""
    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="Number of threads.  [default: one per core, at most 8; with torchrun what it sets]",
    )(command)


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
    from merge.text.source import TextSource

    columns = options["text_column"]
    samples = options["samples"] or TextSource.samples
    return TextSource(options["text"], None if columns is None else tuple(columns), samples, options["seed"])
