"""Tables of a sweep over many models: one line a model, and one line a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.report.table_text import Cell, Row

Record = Mapping[str, Any]
# The summaries of a pair that the terminal shows; basins.json and pairs.csv have all.
SHOWN = ("loss barrier", "convexity gap", "stitching")
MOST_PAIRS = 45  # in the terminal: those of ten models


def verdict_lines(record: Record) -> list[str]:
    """Return the verdict on every line, one sentence a line; under the line's name where there are several."""
    analyses = record["analyses"]
    if len(analyses) == 1:
        return list(analyses[0]["verdict"])
    return [text for each in analyses for text in (f"{each['line']}:", *(f"  {said}" for said in each["verdict"]))]


def model_rows(record: Record) -> list[Row]:
    """Return a row for each model: its loss and accuracy on the task, and its diagnostic scores."""
    names = list(record["diagnostics"])
    accuracy = record["accuracy"]
    head: Row = ["model", f"{record['task']} loss", *([] if accuracy is None else ["accuracy"]), *names]
    rows: list[Row] = [head]
    for at, model in enumerate(record["models"]):
        scores: list[Cell] = [record["loss"][at], *([] if accuracy is None else [accuracy[at]])]
        rows.append([model["name"], *scores, *(record["diagnostics"][name][at] for name in names)])
    return rows


def pair_rows(record: Record, summaries: Sequence[str] = (), most: int | None = None) -> list[Row]:
    """Return a row for each pair: of every line its summaries and their standard errors.

    Args:
        summaries: by their names; all when empty.
        most: how many pairs are shown, those with the largest convexity gap on the last line; all when None.
    """
    lines = record["lines"]
    names = [name for name in lines[0]["summaries"] if not summaries or name in summaries]
    head: Row = ["a", "b"]
    for line in lines:
        for name in names:
            title = name if len(lines) == 1 else f"{name}, {line['name']}"
            head += [title] if _exact(line, name) else [title, "± s.e."]
    rows: list[Row] = [head]
    for at in _chosen(record, most):
        row: Row = [record["models"][k]["name"] for k in record["pairs"][at]]
        for line in lines:
            for name in names:
                of_pairs = line["summaries"][name]
                row.append(of_pairs["value"][at])
                if not _exact(line, name):
                    row.append(of_pairs["standard_error"][at])
        rows.append(row)
    return rows


def _exact(line: Record, name: str) -> bool:
    return all(error is None for error in line["summaries"][name]["standard_error"])


def _chosen(record: Record, most: int | None) -> list[int]:
    """Return the places of the pairs that are shown, in order."""
    count = len(record["pairs"])
    if most is None or count <= most:
        return list(range(count))
    gaps = record["lines"][-1]["summaries"]["convexity gap"]["value"]
    return sorted(sorted(range(count), key=lambda at: -gaps[at])[:most])
