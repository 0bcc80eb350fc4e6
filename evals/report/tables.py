"""Rows of the tables of results: scores, comparisons, barriers, HANS; the first row of every table is its header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evals.report.table_text import Cell, Row, Span
from evals.results.store import Record, model_labels, record_labels

if TYPE_CHECKING:
    from evals.results.compare import Comparison


# The first two letters of a HANS subcase are its heuristic and gold label: ln_passive is lexical overlap, non-entailment.
HEURISTICS = {"l": "lexical_overlap", "s": "subsequence", "c": "constituent"}
GOLDS = {"e": "entailment", "n": "non-entailment"}

SHORT_NAMES = "lex, sub, con: lexical overlap, subsequence, constituent; ent, non: entailment, non-entailment"

SETTING = ["task", "split", "n"]
CURVE = [
    "curve",
    "barrier",
    "95% interval",
    "± s.e.",
    "at λ",
    "calibrated",
    "ε",
    "convexity gap",
    "gap between λ",
    "midpoint accuracy",
]
# Optional values at every point of a curve -> their column titles.
CALIBRATED = {"calibrated": "calibrated loss", "temperature": "temperature"}


def score_rows(results: Sequence[Record]) -> list[Row]:
    """Return a row for each scores record: model, task, split, n, and every metric and interval of any of them."""
    records = [record for record in results if record["kind"] == "scores"]
    metrics = list(dict.fromkeys(metric for record in records for metric in record["scores"]))
    levels = {metric: _level(records, metric) for metric in metrics}
    columns = [name for m in metrics for name in ([m] if levels[m] is None else [m, f"{m}, {levels[m]:.0%} interval"])]
    rows: list[Row] = [["model", *SETTING, *columns]]
    for label, record in zip(record_labels(records), records, strict=True):
        cells: Row = []
        for metric in metrics:
            cells.append(record["scores"].get(metric))
            cells += [] if levels[metric] is None else [_span(record.get("intervals", {}).get(metric))]
        rows.append([label, *(record[name] for name in SETTING), *cells])
    return rows


def _level(records: Sequence[Record], metric: str) -> float | None:
    """Return the level of a metric's intervals, None where no record has one."""
    intervals = (record.get("intervals", {}).get(metric) for record in records)
    return next((interval["level"] for interval in intervals if interval), None)


def _span(interval: Record | None) -> Span | None:
    return None if interval is None else Span(interval["low"], interval["high"])


def interval_rows(results: Sequence[Record]) -> list[Row]:
    """Return a row for each model and score with its interval, standard error and method; no rows if none has an interval."""
    columns = ["low", "high", "standard_error", "level", "method"]
    rows: list[Row] = [["model", "score", *(name.replace("_", " ") for name in columns)]]
    records = [record for record in results if record["kind"] == "scores"]
    for label, record in zip(record_labels(records), records, strict=True):
        for score, interval in record.get("intervals", {}).items():
            rows.append([label, score, *(interval[name] for name in columns)])
    return rows if len(rows) > 1 else []


def comparison_rows(comparisons: Sequence[Comparison]) -> list[Row]:
    """Return a row for each compared pair and score: the difference a - b, its interval, and McNemar's test."""
    level = f"{comparisons[0].interval.level:.0%} interval" if comparisons else "interval"
    rows: list[Row] = [["a", "b", "score", "n", "a - b", level, "only a right", "only b right", "McNemar p"]]
    for each in comparisons:
        test: Row = [None] * 3 if each.test is None else [each.test.only_a, each.test.only_b, each.test.p]
        span = Span(_finite(each.interval.low), _finite(each.interval.high))
        rows.append([each.a, each.b, each.score, each.n, _finite(each.difference), span, *test])
    return rows


def _finite(value: float) -> float | None:
    """Return None for a number that is not finite, as results.json has it."""
    return value if abs(value) < float("inf") else None


def barrier_rows(results: Sequence[Record]) -> list[Row]:
    """Return a row for each curve of barrier and line records: models, task, split, n, then barrier and other measures."""
    rows: list[Row] = [["models", *SETTING, *CURVE]]
    for record in results:
        if record["kind"] not in ("barrier", "line"):
            continue
        pair = " → ".join(model_labels([record["a"], record["b"]]))
        rows += [[pair, *(record[name] for name in SETTING), *_curve_row(curve)] for curve in record["curves"]]
    return rows


def line_rows(record: Record) -> list[Row]:
    """Return a row for each summary of a line record, curves side by side: value, standard error, lam; then its source."""
    curves = record["curves"]
    columns = [title for curve in curves for title in (curve["name"], "± s.e.", "at λ")]
    rows: list[Row] = [[f"{record['task']}, {record['split']}, n = {record['n']:,}", *columns, "source"]]
    for summaries in zip(*(curve["summaries"] for curve in curves), strict=True):
        cells = [cell for s in summaries for cell in (s["value"], s["standard_error"], _places(s["at"]))]
        rows.append([summaries[0]["name"], *cells, summaries[0]["source"]])
    return rows


def _places(at: Sequence[float]) -> str | None:
    """Return where a summary is read: one lam, or the segment of a gap and the worst place in it."""
    if len(at) != 3:
        return lam_text(at[0]) if at else None
    return f"{at[1]:g}, between {at[0]:g} and {at[2]:g}" if at[0] < at[2] else None


def _curve_row(curve: Record) -> Row:
    # A grid with an even number of points has no midpoint.
    midpoint = [
        accuracy for lam, accuracy in zip(curve["lam"], curve["accuracy"], strict=True) if abs(lam - 0.5) < 1e-9
    ]
    interval = curve.get("convexity_interval")
    return [
        curve["name"],
        curve["barrier"],
        _span(curve.get("barrier_interval")),
        # At an end the barrier is 0 whatever the rows: its upper bound is in the interval.
        None if curve.get("barrier_lam") in (0, 1) else curve.get("standard_error"),
        lam_text(curve.get("barrier_lam")),
        curve.get("calibrated_barrier"),
        curve.get("epsilon"),
        curve.get("convexity_gap"),
        f"{interval[0]:g} – {interval[2]:g}, worst at {interval[1]:g}"
        if interval and curve.get("convexity_gap")
        else None,
        midpoint[0] if midpoint else None,
    ]


def lam_text(lam: float | None) -> str | None:
    """Return a coefficient as it would be typed: 0.5, not 0.5000."""
    return None if lam is None else f"{lam:g}"


def point_rows(record: Record) -> list[Row]:
    """Return a row for each point of a barrier record: λ, then loss and accuracy of each curve, and what else it has."""
    curves = record["curves"]
    lams = sorted({lam for curve in curves for lam in curve["lam"]})
    shown = [
        (curve, what) for curve in curves for what in ("loss", "accuracy", *(w for w in CALIBRATED if curve.get(w)))
    ]
    rows: list[Row] = [["λ", *(f"{curve['name']}: {CALIBRATED.get(what, what)}" for curve, what in shown)]]
    for lam in lams:
        values: Row = [curve[what][curve["lam"].index(lam)] if lam in curve["lam"] else None for curve, what in shown]
        rows.append([lam_text(lam), *values])
    return rows


def hans_rows(results: Sequence[Record], short: bool = False) -> list[Row]:
    """Return a row for each model: overall accuracy, then the six cells, entailment first as in McCoy et al. 2019.

    Args:
        short: name cells by three letters of heuristic and label, as SHORT_NAMES says: six long names are 186 columns.
    """
    records = [record for record in results if record.get("hans")]
    heuristics = dict.fromkeys(heuristic for record in records for heuristic in record["hans"]["heuristics"])
    cells = [
        (heuristic, gold) for gold in GOLDS.values() for heuristic in dict.fromkeys([*HEURISTICS.values(), *heuristics])
    ]
    names = [
        f"{heuristic[:3]} {gold[:3]}" if short else f"{heuristic.replace('_', ' ')}, {gold}"
        for heuristic, gold in cells
    ]
    rows: list[Row] = [["model", "overall", *names]]
    for label, record in zip(record_labels(records), records, strict=True):
        table = record["hans"]["heuristics"]
        values = [table.get(heuristic, {}).get(gold) for heuristic, gold in cells]
        rows.append([label, record["hans"]["accuracy"], *values])
    return rows


def part_rows(results: Sequence[Record], part: str) -> list[Row]:
    """Return a row for each subcase, template or count (`part` of the HANS table), with a column for each model."""
    records = [record for record in results if record.get("hans")]
    columns = [dict(flatten(record["hans"].get(part, {}))) for record in records]
    rows: list[Row] = [[part.rstrip("s"), *record_labels(records)]]
    rows += [[name, *(column.get(name) for column in columns)] for name in dict.fromkeys(n for c in columns for n in c)]
    return rows


def flatten(value: object, path: str = "") -> list[tuple[str, Cell]]:
    """Return (path, leaf) for every leaf of nested dicts and lists."""
    if isinstance(value, Mapping):
        return [
            leaf for key, child in value.items() for leaf in flatten(child, f"{path} / {key}" if path else str(key))
        ]
    if isinstance(value, list | tuple):
        if all(isinstance(child, str) for child in value):
            return [(path, ", ".join(value))]
        return [leaf for at, child in enumerate(value) for leaf in flatten(child, f"{path}[{at}]")]
    if value is None or isinstance(value, str | float) or type(value) is int:
        return [(path, value)]
    return [(path, str(value))]
