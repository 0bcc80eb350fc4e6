"""Tables of a similarity record: the close pairs with their standard errors and chance, and every pair of sites."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.report.table_text import Row

Record = Mapping[str, Any]


def measures_of(record: Record) -> list[str]:
    """Return the measures of a record, in their order."""
    return list(record["matrices"])


def pair_rows(record: Record) -> list[Row]:
    """Return a row for each site of A beside its counterpart in B: similarity and standard error by each measure; then chance."""
    names = measures_of(record)
    alike = record["sites"]["a"] == record["sites"]["b"]
    rows: list[Row] = [["site of A" if not alike else "site", *([] if alike else ["site of B"])]]
    for name in names:
        rows[0] += [name, "± s.e."]
    rows[0].append("most similar of B")
    for pair in record["pairs"]:
        cells: Row = [pair["a"], *([] if alike else [pair["b"]])]
        for name in names:
            measured = pair["measures"].get(name) or {}
            cells += [measured.get("value"), measured.get("standard_error")]
        rows.append([*cells, pair["best"]])
    last: Row = ["chance: rows of B in random order", *([] if alike else [None])]
    for name in names:
        last += [chance(record, name), None]
    return [*rows, [*last, None]]


def chance(record: Record, name: str) -> float | None:
    """Return what a measure gives on rows in random order, on average over the close pairs."""
    values = [pair["measures"][name]["chance"] for pair in record["pairs"] if name in pair["measures"]]
    measured = [value for value in values if value is not None and value == value]
    return fmean(measured) if measured else None


def cell_rows(record: Record) -> list[Row]:
    """Return a row for each pair of sites, with a column for each measure."""
    names = measures_of(record)
    rows: list[Row] = [["site of A", "site of B", *names]]
    for i, a in enumerate(record["sites"]["a"]):
        for j, b in enumerate(record["sites"]["b"]):
            rows.append([a, b, *(record["matrices"][name][i][j] for name in names)])
    return rows


def close_rows(record: Record) -> list[Row]:
    """Return a row for each close pair and measure: value, standard error, chance."""
    rows: list[Row] = [["site of A", "site of B", "measure", "value", "standard error", "chance"]]
    for pair in record["pairs"]:
        for name, each in pair["measures"].items():
            rows.append([pair["a"], pair["b"], name, each["value"], each["standard_error"], each["chance"]])
    return rows


def similarity_tables(record: Record) -> list[list[Row]]:
    """Return the tables that the command prints."""
    return [pair_rows(record)]


def similarity_verdict(record: Record) -> list[str]:
    """Return a sentence: how many sites of A are most similar to their counterpart in B, and where the two are least alike."""
    name = "debiased cka" if "debiased cka" in record["matrices"] else measures_of(record)[0]
    own = sum(pair["best"] == pair["b"] for pair in record["pairs"])
    measured = [pair for pair in record["pairs"] if (pair["measures"].get(name) or {}).get("value") is not None]
    if not measured:
        return [f"{name}: no site of either model varies on these texts"]
    worst = min(measured, key=lambda pair: pair["measures"][name]["value"])
    value, floor = worst["measures"][name]["value"], worst["measures"][name]["chance"]
    return [
        f"{own} of {len(record['pairs'])} sites of A are most similar to their counterpart in B ({name}); the least alike is "
        f"{worst['a']}: {value:.3f}, where rows in random order give {floor:.3f}"
    ]
