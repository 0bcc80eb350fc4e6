"""edit-layers compare: a table of plans and strategies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge.commands.layer_options import (
    drop_settings,
    named_models,
    opened,
    repair_settings,
    scorer_of,
    text_source,
)
from merge.commands.terminal import set_verbosity
from merge.errors import OutputError, UsageError, one_line
from merge.layers.strategies.table import STRATEGIES, strategy_named

if TYPE_CHECKING:
    from merge.checkpoints.checkpoint import Checkpoint
    from merge.layers.compare import Comparison, Entry


def compare(models: Sequence[str], options: Mapping[str, Any]) -> None:
    """Open the models, compare what is asked for and print the table."""
    set_verbosity(options["verbose"], options["quiet"])
    from merge.layers.compare import compare_plans
    from merge.layers.edit import opened_whole

    for path in (*options["reports"], *([options["plot"]] if options["plot"] else [])):
        _check_file(Path(path), plot=path == options["plot"])
    names, paths = named_models(models)
    if bool(options["strategies"]) != bool(options["counts"]):
        raise UsageError("--strategy and --count must be given together. Example: --strategy top,greedy --count 1,2.")
    checkpoints = opened_whole(opened(paths, options["revision"]))
    entries = _entries(checkpoints, names, options)
    scorer = scorer_of(options)
    table = compare_plans(
        checkpoints,
        names,
        entries,
        text_source(options),
        options["score"] or "cosine",
        scorer,
        options["metric"] or "score",
        options["stack"],
    )
    if not options["quiet"]:
        for note in table.notes:
            click.echo(f"note: {note}", err=True)
    click.echo(json.dumps(table.to_json(), indent=2) if options["as_json"] else str(table))
    _write(table, options)  # last: a disk that is full costs the files, and not the table


def _entries(checkpoints: Sequence[Checkpoint], names: Sequence[str], options: Mapping[str, Any]) -> list[Entry]:
    """Return the rows that are asked for, each plain and, where a repair is, repaired."""
    from merge.layers.compare import entries_of
    from merge.layers.plans.text import parse_plan
    from merge.layers.strategies.choose import drop_plan

    plans = [(text, parse_plan(text, names, options["stack"])) for text in options["plans"]]
    for name in _strategies(options["strategies"]):
        for count in _counts(options["counts"]):
            chosen = drop_settings(options, name, count, checkpoints[0])
            try:
                plans.append((f"{name} {count}", drop_plan(checkpoints[0], chosen)[0]))
            except UsageError:
                if options["strategies"] != "all":
                    raise
    return entries_of(plans, repair_settings(options))


def _strategies(text: str | None) -> list[str]:
    if text is None:
        return []
    return list(STRATEGIES) if text == "all" else [strategy_named(name.strip()).name for name in text.split(",")]


def _counts(text: str | None) -> list[int]:
    try:
        return [int(part) for part in (text or "").split(",")]
    except ValueError:
        raise UsageError(f"--count expects numbers separated by commas, found {text!r}.") from None


def _check_file(path: Path, plot: bool) -> None:
    """Stop before any work at a file of another kind, or in no folder."""
    kinds = (".png", ".svg") if plot else (".json", ".csv")
    if path.suffix not in kinds:
        raise UsageError(f"{path}: expected a file that ends in {' or '.join(kinds)}.")
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}.")


def _write(table: Comparison, options: Mapping[str, Any]) -> None:
    for path in options["reports"]:
        text = table.to_csv() if path.endswith(".csv") else json.dumps(table.to_json(), indent=2) + "\n"
        _write_file(Path(path), text)
    if options["plot"]:
        from merge.publish.figures import figure_settings, rendered

        with figure_settings():
            figure = table.plot()
        _write_file(Path(options["plot"]), rendered(figure, Path(options["plot"]).suffix[1:]))


def _write_file(path: Path, data: str | bytes) -> None:
    from merge.disk.atomic import write_atomic

    try:
        write_atomic(path, data)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {one_line(error)}") from error
