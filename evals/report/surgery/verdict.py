"""What a study of edited models says in a few sentences: the layers that matter most and least, order, paths, linearity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from evals.report.surgery.tables import COMPONENTS, Record, correlation, leading, of_part, score_of
from evals.report.table_text import show

# The share of the gradient whose path lengths are named.
MOST = 0.9


def verdict_lines(record: Record) -> list[str]:
    """Return the sentences of a record, the most important first."""
    lines = [*_single(record), *_order(record), *_paths(record), *_linear(record), *_distance(record)]
    return [line for line in lines if line]


def _scored(record: Record, variants: Sequence[Mapping[str, Any]]) -> list[tuple[float, Mapping[str, Any]]]:
    return [(value, v) for v in variants if (value := score_of(record, v)) is not None and value == value]


def _single(record: Record) -> list[str]:
    scored = _scored(record, of_part(record, "layers"))
    if len(scored) < 2:
        return []
    name, whole = leading(record), show(record["whole"][leading(record)])
    (low, worst), (high, best) = min(scored, key=lambda s: s[0]), max(scored, key=lambda s: s[0])
    return [
        f"Of single layers, {worst['layers'][0]} matters most ({name} {show(low)} without it, {whole} with all) and "
        f"{best['layers'][0]} least ({show(high)})."
    ]


def _order(record: Record) -> list[str]:
    points = [(v["at"], value) for value, v in _scored(record, of_part(record, "orders"))]
    value = correlation(points)
    return (
        []
        if value is None
        else [f"Over {len(points)} orders of the layers, {leading(record)} and Kendall's tau correlate by {value:.2f}."]
    )


def _paths(record: Record) -> list[str]:
    paths = record.get("paths")
    if not paths:
        return []
    low, high = span(paths["shares"], MOST)
    low_paths, high_paths = span([count / sum(paths["counts"]) for count in paths["counts"]], MOST)
    return [
        f"{MOST:.0%} of the summed gradient comes through paths of {low} to {high} sublayers, of {len(paths['counts']) - 1}; "
        f"{MOST:.0%} of the paths are {low_paths} to {high_paths} long."
    ]


def span(shares: Sequence[float | None], least: float) -> tuple[int, int]:
    """Return the shortest run of neighbours that holds a share, the first of equals; all of them where none does."""
    values = [value or 0.0 for value in shares]
    for width in range(1, len(values) + 1):
        for start in range(len(values) - width + 1):
            if sum(values[start : start + width]) >= least:
                return start, start + width - 1
    return 0, len(values) - 1


def _linear(record: Record) -> list[str]:
    if not record.get("components"):
        return []
    means = {
        name: fmean(each["nonlinearity"] for each in record["components"] if each["component"] == name)
        for name in COMPONENTS
    }
    alone = {name: means[name] for name in ("attention", "ffn")}
    least = max(alone, key=alone.__getitem__)
    words = {"attention": "attention", "ffn": "the feed-forward part"}
    others = " and ".join(f"{words[name]} {show(value)}" for name, value in alone.items())
    return [
        f"What {words[least]} writes is the least linear: 1 - cosine of the best linear map is {others} on average, "
        f"and {show(means['layer'])} for whole layers."
    ]


def _distance(record: Record) -> list[str]:
    moved = [v for v in of_part(record, "swaps") if v["at"]]
    by_distance: dict[float, list[float]] = {}
    for value, v in _scored(record, moved):
        by_distance.setdefault(v["at"], []).append(value)
    if len(by_distance) < 2:
        return []
    near, far = min(by_distance), max(by_distance)
    return [
        f"Swapping neighbours leaves {leading(record)} {show(fmean(by_distance[near]))} on average, swapping layers {far:g} "
        f"apart {show(fmean(by_distance[far]))}; with all in order it is {show(record['whole'][leading(record)])}."
    ]
