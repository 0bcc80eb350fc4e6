"""The figure of a similarity record: a heatmap of all pairs of sites for each measure, and the counterparts beside chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evals.report.inside.similarity_tables import chance, measures_of
from evals.report.svg import numbers, short
from evals.results.store import model_labels
from merge.publish.figures import COLOURS, INK, MARKERS, figure_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
# Up to so many sites a cell is wide enough for its number, and a side for all names.
MAX_NUMBERED, MAX_NAMED = 8, 16
ON_LIGHT, ON_DARK = "#111111", "#fdfdfd"
SHADES, COLUMNS = "Blues", 3


def similarity_figure(record: Record) -> Figure:
    """Return a panel for each measure, rows the sites of A and columns those of B; below, lines of counterparts."""
    from matplotlib.figure import Figure

    names = measures_of(record)
    lines = math.ceil(len(names) / COLUMNS)
    with figure_settings():
        figure = Figure(figsize=(9.6, 3.3 * lines + 3.2), layout="constrained")
        grid = figure.add_gridspec(lines + 1, COLUMNS)
        for at, name in enumerate(names):
            _draw_heatmap(figure, figure.add_subplot(grid[divmod(at, COLUMNS)]), record, name)
        counterparts = figure.add_subplot(grid[lines, :])
        _draw_counterparts(counterparts, record, names)
        figure.legend(
            *counterparts.get_legend_handles_labels(), fontsize=7.5, loc="outside lower center", ncols=len(names) + 1
        )
        a, b = (short(name) for name in model_labels(record["models"]))
        how = "a row a text" if record["by"] == "texts" else "a row a token"
        where = f"{record['data']}; {record['row_count']:,} rows, {how}; bold or ○: most similar of B"
        title = f"A = {a} (down),  B = {b} (across)\n{where}"
        figure.suptitle(title, x=0.012, ha="left", fontsize=9)
        return figure


def _draw_heatmap(figure: Figure, axes: Axes, record: Record, name: str) -> None:
    from matplotlib import colormaps

    rows = [numbers(row) for row in record["matrices"][name]]
    image = axes.imshow(rows, cmap=colormaps[SHADES], vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    small = max(len(rows), len(rows[0])) <= MAX_NUMBERED
    for i, row in enumerate(rows):
        finite = [value if value == value else -1.0 for value in row]
        best = finite.index(max(finite))
        if small:
            for j, value in enumerate(row):
                shade = ON_DARK if value > 0.55 else ON_LIGHT
                weight = "bold" if j == best else "normal"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=shade, weight=weight)
        else:
            shade = ON_DARK if finite[best] > 0.55 else ON_LIGHT
            axes.plot(best, i, "o", markersize=4, markerfacecolor="none", markeredgecolor=shade, markeredgewidth=0.9)
    axes.grid(visible=False)
    axes.set_title(name, fontsize=9)
    for side, ticks in (("b", axes.set_xticks), ("a", axes.set_yticks)):
        sites = record["sites"][side]
        shown = [at for at in range(len(sites)) if len(sites) <= MAX_NAMED or at % 4 == 0]
        ticks(shown, [_label(sites[at]) for at in shown])
    axes.tick_params(labelsize=7, length=0)
    axes.tick_params(axis="x", labelrotation=90)
    bar = figure.colorbar(image, ax=axes, shrink=0.85)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7)
    floor = chance(record, name)
    if floor is not None:
        bar.ax.axhline(floor, color=COLOURS[0], linewidth=1.6)
        bar.ax.set_title(f"chance\n{round(floor, 2) + 0.0:.2f}", fontsize=6.5, color=COLOURS[0])


def _draw_counterparts(axes: Axes, record: Record, names: Sequence[str]) -> None:
    """Draw each measure over the sites of A, with two standard errors, and what chance gives as a dotted line."""
    sites = [pair["a"] for pair in record["pairs"]]
    x = range(len(sites))
    for at, name in enumerate(names):
        measured = [pair["measures"].get(name) or {} for pair in record["pairs"]]
        values, floors = (numbers([each.get(field) for each in measured]) for field in ("value", "chance"))
        errors = [2 * error for error in numbers([each.get("standard_error") for each in measured])]
        colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
        axes.errorbar(
            x, values, errors, color=colour, marker=marker, markersize=3, linewidth=1.2, capsize=2, label=name
        )
        axes.plot(x, floors, ":", color=colour, linewidth=1.0)
    axes.plot([], [], ":", color=INK, linewidth=1.0, label="chance")
    shown = [at for at in x if len(sites) <= MAX_NAMED or at % 4 == 0]
    axes.set_xticks(shown, [_label(sites[at]) for at in shown])
    axes.tick_params(axis="x", labelrotation=90, labelsize=7)
    axes.set_title("each site of A and its counterpart in B, ± 2 standard errors", fontsize=9)
    axes.set_ylabel("similarity", fontsize=8)
    axes.set_xlabel("site of A; numbers are those of layers", fontsize=7)
    axes.set(ylim=(min(-0.02, axes.get_ylim()[0]), 1.03))


def _label(site: str) -> str:
    return site.removeprefix("layer ").replace(" output", "")
