"""The figure of the thirty HANS subcases: a dot for each model, and for many models the range from worst to best.

Models that differ only in their seed agree on held-out rows and scatter here (McCoy, Min and Linzen 2020, "BERTs of a
feather do not generalize together", arXiv:1911.02969, figure 2): the range is more informative than any single model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.report.svg import numbers, save_figure, short
from evals.report.table_text import show
from evals.report.tables import GOLDS, HEURISTICS
from evals.results.store import Record, record_labels
from merge.errors import TaskError
from merge.publish.figures import COLOURS, INK, MARKERS, RULE, figure_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The first three letters of a subcase -> heuristic and gold label: ln_ is "lexical overlap, non-entailment".
PREFIXES = {f"{h}{g}_": f"{HEURISTICS[h].replace('_', ' ')}, {GOLDS[g]}" for h in HEURISTICS for g in GOLDS}


def hans_figure(records: Sequence[Record]) -> Figure:
    """Return a figure with a row for each subcase, grouped by heuristic and gold label, and a dot for each model."""
    from matplotlib.figure import Figure

    records = [record for record in records if record.get("hans")]
    if not records:
        raise TaskError("no HANS table to draw: none of the records given has one (evaluate-models hans writes them).")
    groups = _groups(dict.fromkeys(name for record in records for name in record["hans"]["subcases"]))
    heights, headings, bottom = _heights(groups)
    with figure_settings():
        few = len(records) <= len(COLOURS)
        legend_lines = len(records) // 2 + 1 if few else 1
        figure = Figure(figsize=(7.4 if few else 8.4, 0.7 + 0.23 * bottom + 0.2 * legend_lines), layout="constrained")
        axes = figure.subplots()
        handles = _draw_few(axes, records, heights) if few else _draw_many(axes, records, heights)
        chance = axes.axvline(0.5, color=INK, linestyle="--", linewidth=0.9, zorder=2)
        for name, height in headings.items():
            axes.text(-0.02, height, name, weight="bold", va="center", ha="right", transform=axes.get_yaxis_transform())
        axes.set_yticks(list(heights.values()), [_subcase_label(name) for name in heights])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", visible=False)
        axes.set(xlim=(-0.02, 1.02), ylim=(bottom - 0.4, -0.6), xlabel="accuracy (dashed: chance, 0.5)")
        names = [*handles, "chance, 0.5"]
        figure.legend([*handles.values(), chance], names, loc="outside upper left", ncols=2 if few else 4)
        return figure


def _draw_few(axes: Axes, records: Sequence[Record], heights: Mapping[str, float]) -> dict[str, Any]:
    """Draw each model in its own colour and marker, shifted a little so that equal scores are visible."""
    handles = {}
    for at, (record, label) in enumerate(zip(records, record_labels(records), strict=True)):
        shift = min(0.22, 0.66 / len(records)) * (at - (len(records) - 1) / 2)
        style = {"marker": MARKERS[at], "color": COLOURS[at], "markersize": 5}
        # The score comes first: a legend drops names that start with an underscore.
        handles[f"{show(record['hans']['accuracy'])}  {short(label)}"] = _draw_dots(
            axes, record["hans"]["subcases"], heights, shift, style
        )
    return handles


def _draw_many(axes: Axes, records: Sequence[Record], heights: Mapping[str, float]) -> dict[str, Any]:
    """Draw many models as dots in a band from the worst to the best, with their median, and print all three numbers."""
    tables = [record["hans"]["subcases"] for record in records]
    scores = {name: sorted(table[name] for table in tables if table.get(name) is not None) for name in heights}
    span = {name: (v[0], statistics.median(v), v[-1]) if v else (math.nan,) * 3 for name, v in scores.items()}
    low, middle, high = (dict(zip(span, values, strict=True)) for values in zip(*span.values(), strict=True))
    widths = [high[name] - low[name] for name in heights]
    bands = axes.barh(
        list(heights.values()), widths, left=list(low.values()), height=0.62, color=RULE, linewidth=0, zorder=1.5
    )
    _write_numbers(axes, 0, ["min", "med.", "max"], weight="bold")
    for name, height in heights.items():
        _write_numbers(axes, height, ["–" if math.isnan(value) else f"{value:.2f}" for value in span[name]])
    style = {"marker": "o", "color": COLOURS[1], "alpha": 0.45, "markersize": 2.6, "markeredgewidth": 0}
    # Within a row, models are in their order: each has the same offset in all rows.
    for at, table in enumerate(tables):
        cloud = _draw_dots(axes, table, heights, 0.5 * (at / (len(tables) - 1) - 0.5), style)
    style = {"marker": "|", "color": COLOURS[0], "markersize": 11, "markeredgewidth": 2}
    handles = {f"{len(records)} models": cloud, "worst to best": bands}
    return {**handles, "median": _draw_dots(axes, middle, heights, 0, style)}


def _write_numbers(axes: Axes, height: float, texts: Sequence[str], **style: Any) -> None:
    """Write a row of numbers to the right of the axes."""
    for at, text in enumerate(texts):
        # Offset in points: a share of the width would move while the layout makes room.
        axes.annotate(
            text,
            (1, height),
            xytext=(34 + 28 * at, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            ha="right",
            fontsize=7.5,
            annotation_clip=False,
            **style,
        )


def _draw_dots(
    axes: Axes, scores: Mapping[str, Any], heights: Mapping[str, float], shift: float, style: Mapping[str, Any]
) -> Any:
    shifted = [heights[name] + shift for name in scores]
    (dots,) = axes.plot(numbers(scores.values()), shifted, linestyle="none", clip_on=False, zorder=3, **style)
    return dots


def _groups(subcases: Iterable[str]) -> dict[str, list[str]]:
    """Return the subcases by heuristic and gold label, in HANS's order; names without such a prefix come last."""
    groups: dict[str, list[str]] = {heading: [] for heading in [*PREFIXES.values(), "other"]}
    for name in subcases:
        groups[PREFIXES.get(name[:3], "other")].append(name)
    return {heading: names for heading, names in groups.items() if names}


def _subcase_label(name: str) -> str:
    return (name[3:] if name[:3] in PREFIXES else name).replace("_", " ")


def _heights(groups: Mapping[str, Sequence[str]]) -> tuple[dict[str, float], dict[str, float], float]:
    """Return the height of every subcase and of every heading, and that of the bottom edge."""
    heights: dict[str, float] = {}
    headings: dict[str, float] = {}
    height = 0.0
    for heading, names in groups.items():
        headings[heading] = height
        for name in names:
            height += 1
            heights[name] = height
        height += 1.4
    return heights, headings, height - 0.4


def hans_plot(records: Sequence[Record], stem: Path) -> tuple[Path, Path]:
    """Write <stem>.png and <stem>.svg: the accuracy of every model on every HANS subcase."""
    return save_figure(hans_figure(records), stem)
