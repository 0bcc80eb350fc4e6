"""What the commands of evaluate-models share: their options, results kept in a folder, and how an answer is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge.errors import UsageError

if TYPE_CHECKING:
    from evals.report.tables import Row
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


def show(records: Sequence[dict[str, Any]], options: dict[str, Any], kind: str) -> None:
    """Print the results, and rewrite figures and page of the results folder.

    Args:
        kind: of the answer: scores, hans, barrier, or official (the HANS authors' text).
    """
    from evals.hans.scores import HansTable, official_text

    if not options["quiet"]:
        for note in dict.fromkeys(note for record in records for note in record["notes"]):
            click.echo(f"note: {note}", err=True)
    if options["as_json"]:
        click.echo(json_text(list(records)))
    elif kind == "official":
        click.echo(official_text(HansTable.from_json(records[0]["hans"])), nl=False)
    else:
        plain = options["table"] == "plain"
        for line in dict.fromkeys(f"{record['task']}: {record['data']}" for record in records):
            if plain or not options["quiet"]:
                click.echo(line, err=not plain)  # a table in a format stands alone
        show_tables(_tables(records, kind, options), options["table"])
    if options["output"]:
        _illustrate(options["output"], records, kind, options["quiet"])


def _tables(records: Sequence[dict[str, Any]], kind: str, options: dict[str, Any]) -> list[list[Row]]:
    from evals.report.tables import barrier_rows, hans_rows, part_rows, score_rows

    tables = [{"hans": hans_rows, "scores": score_rows, "barrier": barrier_rows}[kind](records)]
    if kind == "scores" and any(record.get("hans") for record in records):
        tables.append(hans_rows(records))
    if kind == "hans" and options.get("detail"):
        tables += [part_rows(records, part) for part in ("subcases", "templates")]
    return tables


def show_tables(tables: Sequence[list[Row]], form: str) -> None:
    """Print tables as text in columns, as Markdown or as CSV; in these two an empty line parts them."""
    from evals.report.tables import csv_table, markdown_table, plain_table

    shown = {"plain": plain_table, "markdown": markdown_table, "csv": csv_table}[form]
    click.echo(("\n" if form == "plain" else "\n\n").join(shown(rows).rstrip("\n") for rows in tables))


def json_text(value: Any) -> str:
    """Return JSON text, null for a number that is not finite: as results.json has it."""
    return json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None), indent=2)


def _illustrate(folder: Path, records: Sequence[dict[str, Any]], kind: str, quiet: bool) -> None:
    from evals.report.barrier_figure import barrier_plot, hans_plot
    from evals.results.store import SETTING, load_results, write_page

    made: list[Path] = []
    if kind == "barrier":
        for record in records:
            made += barrier_plot(record, folder / f"barrier-{_short(record)}")
    if pairs := [record for record in records if record.get("hans")]:
        # One figure compares models on the same rows.
        alike = [r for r in load_results(folder) if r.get("hans") and all(r[n] == pairs[0][n] for n in SETTING)]
        made += hans_plot(alike, folder / "hans")
    made.append(write_page(folder))
    if not quiet:
        click.echo("wrote " + ", ".join(str(path) for path in [folder / "results.json", *made]), err=True)


def _short(record: dict[str, Any]) -> str:
    return f"{record['task']}-{record['key'].rsplit('-', 1)[-1][:8]}"
