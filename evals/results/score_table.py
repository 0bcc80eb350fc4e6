"""Tables of published scores, a line for each run: what diagnostics are where the models are not at hand."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from merge.errors import TaskError, first_line, some

# What a line under the runs is called when it summarises them.
AGGREGATES = ("minimum", "maximum", "mean", "standard deviation")


@dataclass(frozen=True)
class ScoreTable:
    """Scores of runs.

    Attributes:
        runs: names.
        scores: column -> a score of each run, nan where the table has none.
        aggregates: name of a line that summarises the runs -> column -> its value, as the table has it.
    """

    runs: tuple[str, ...]
    scores: Mapping[str, tuple[float, ...]] = field(repr=False)
    aggregates: Mapping[str, Mapping[str, float]] = field(repr=False)


def read_score_table(path: Path) -> ScoreTable:
    """Return the scores of a CSV: a header, then a line for each run, its name first.

    Lines without a word are passed over; "Minimum", "Maximum", "Mean" and "Standard deviation" are no runs and are kept apart.

    Raises:
        TaskError: the file cannot be read; a column or run is named twice; a line has another number of fields; a score is no
            number; or there is no run.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [(at, line) for at, line in enumerate(csv.reader(file), 1) if any(field.strip() for field in line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"{path} cannot be read as a table of scores: {first_line(error)}.") from None
    if len(lines) < 2:
        raise TaskError(f"{path}: expected a header and a line for each run, found {len(lines)} lines.")
    header = [name.strip() for name in lines[0][1]]
    _check_once(path, "columns", header)
    rows = [_row(path, at, line, header) for at, line in lines[1:]]
    runs = [(name, values) for name, values in rows if name.lower() not in AGGREGATES]
    _check_once(path, "runs", [name for name, _ in runs])
    if not runs:
        raise TaskError(f"{path}: expected a line for each run, found none.")
    columns = {name: tuple(values[k] for _, values in runs) for k, name in enumerate(header[1:])}
    aggregates = {
        name.lower(): dict(zip(header[1:], values, strict=True)) for name, values in rows if name.lower() in AGGREGATES
    }
    return ScoreTable(tuple(name for name, _ in runs), columns, aggregates)


def _row(path: Path, at: int, line: Sequence[str], header: Sequence[str]) -> tuple[str, list[float]]:
    if len(line) != len(header):
        raise TaskError(f"{path}, line {at}: expected {len(header)} fields as in the header, found {len(line)}.")
    try:
        return line[0].strip(), [float(text) if text.strip() else math.nan for text in line[1:]]
    except ValueError as error:
        raise TaskError(f"{path}, line {at}: {first_line(error)}; expected a score, or nothing.") from None


def _check_once(path: Path, what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TaskError(f"{path}: these {what} occur more than once: {some(twice)}.")
