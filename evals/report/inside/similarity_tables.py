"""Tables of a similarity record: the close pairs with their standard errors and chance, and every pair of sites."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.report.table_text import Row

Record = Mapping[str, Any]


def measures_of(record: Record) -> list[str]:
    """Return the measures of a record, in their order."""
    return list(record["matrices"])


def value_rows(record: Record) -> list[Row]:
    """Return a row for each site of A: its similarity to its counterpart in B by each measure; then chance."""
    names = measures_of(record)
    rows: list[Row] = [["site of A", *names]]
    for pair in record["pairs"]:
        rows.append([pair["a"], *((pair["measures"].get(name) or {}).get("value") for name in names)])
    return [*rows, ["chance", *(chance(record, name) for name in names)]]


def error_rows(record: Record) -> list[Row]:
    """Return a row for each site of A: the standard errors of its similarities."""
    names = measures_of(record)
    rows: list[Row] = [["standard error", *names]]
    for pair in record["pairs"]:
        rows.append([pair["a"], *((pair["measures"].get(name) or {}).get("standard_error") for name in names)])
    return rows


def counterpart_rows(record: Record) -> list[Row]:
    """Return a row for each site of A: its counterpart in B, and the site of B that is most similar."""
    rows: list[Row] = [["site of A", "counterpart in B", "most similar of B"]]
    return [*rows, *([pair["a"], pair["b"], pair["best"]] for pair in record["pairs"])]


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
    return [value_rows(record), error_rows(record), counterpart_rows(record)]


def similarity_verdict(record: Record) -> list[str]:
    """Return a sentence: how many sites of A are most similar to their counterpart in B, and where the two are least alike."""
    name = "debiased cka" if "debiased cka" in record["matrices"] else measures_of(record)[0]
    measured = [pair for pair in record["pairs"] if _is_number((pair["measures"].get(name) or {}).get("value"))]
    own = sum(pair["best"] == pair["b"] for pair in measured)
    if not measured:
        return [f"{name}: no site of either model varies on these texts"]
    worst = min(measured, key=lambda pair: pair["measures"][name]["value"])
    value, floor = worst["measures"][name]["value"], worst["measures"][name]["chance"]
    return [
        f"{own} of {len(record['pairs'])} sites of A are most similar to their counterpart in B ({name}); the least alike is "
        f"{worst['a']}: {value:.3f}, where rows in random order give {floor:.3f}"
    ]


def _is_number(value: float | None) -> bool:
    """Return whether a similarity is defined: of sites that do not vary it is nan, or null in results.json."""
    return value is not None and math.isfinite(value)
