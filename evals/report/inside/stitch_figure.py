"""The figure of a stitch record: penalties by depth beside their controls, CKA and LLFC, and the matrix of all pairs of cuts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.report.inside.stitch_tables import NAMES, main_score, penalty_rows
from evals.report.svg import numbers, short
from evals.results.store import model_labels
from merge.publish.figures import COLOURS, INK, MARKERS, figure_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
SHADES = "Blues"
ON_LIGHT, ON_DARK = "#111111", "#fdfdfd"
HEADROOM = 0.12  # above the curves, for the legend
MAX_NUMBERED = 14  # cuts of a model, up to which a cell is wide enough for its number


def stitch_figure(record: Record) -> Figure:
    """Return two panels by depth, and two matrices below where all pairs of cuts were measured."""
    from matplotlib.figure import Figure

    whole = record.get("matrix") is not None
    with figure_settings():
        figure = Figure(figsize=(9.6, 8.2 if whole else 4.0), layout="constrained")
        grid = figure.add_gridspec(2 if whole else 1, 2)
        _draw_penalties(figure.add_subplot(grid[0, 0]), record)
        _draw_alike(figure.add_subplot(grid[0, 1]), record)
        if whole:
            _draw_matrix(figure.add_subplot(grid[1, 0]), record["matrix"], f"penalty in {main_score(record)}")
            _draw_matrix(figure.add_subplot(grid[1, 1]), record["cka"], "linear CKA")
        a, b = (short(name) for name in model_labels(record["models"]))
        title = f"A = {a} below,  B = {b} above;  map: {record['map']}\n{record['data']}"
        figure.suptitle(title, x=0.012, ha="left", fontsize=9)
        return figure


def _draw_penalties(axes: Axes, record: Record) -> None:
    cuts = record["cuts"]
    x = range(len(cuts))
    for number, name in enumerate(NAMES):
        values = numbers([cut["penalties"].get(name) for cut in cuts])
        first = number == 0
        axes.plot(
            x,
            values,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            linewidth=2.0 if first else 1.1,
            linestyle="-" if first else "--",
            label=record["map"] if first else name,
            zorder=3 if first else 2,
        )
    axes.axhline(0, color=INK, linewidth=0.8)
    _label_cuts(axes, record)
    axes.set(ylabel=f"penalty in {main_score(record)}", title="against B (reversed: against A)")
    axes.title.set_fontsize(9)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + HEADROOM * (high - low))
    axes.legend(fontsize=7, ncols=len(NAMES), loc="upper center", columnspacing=1.0, handlelength=1.4)


def _draw_alike(axes: Axes, record: Record) -> None:
    cuts = record["cuts"]
    x = range(len(cuts))
    axes.plot(
        x, numbers([cut["cka"] for cut in cuts]), color=COLOURS[0], marker=MARKERS[0], markersize=4, label="linear CKA"
    )
    if any(cut["explained"] is not None for cut in cuts):
        explained = numbers([cut["explained"] for cut in cuts])
        axes.plot(x, explained, color=COLOURS[1], marker=MARKERS[1], markersize=4, label="R2 of the map")
    header, *rows = penalty_rows(record)
    if str(header[-1]).startswith("LLFC"):
        distances = numbers([row[-1] for row in rows])
        axes.plot(x, distances, color=COLOURS[2], marker=MARKERS[2], markersize=4, label="LLFC, 1 - cos")
    title = "the same states"
    if barrier := record.get("barrier"):
        title += f"; loss barrier of the models {barrier['barrier']:.3f}"
    axes.set(ylim=(min(0, axes.get_ylim()[0]), None), title=title)
    _label_cuts(axes, record)
    axes.title.set_fontsize(9)
    axes.legend(fontsize=7)


def _label_cuts(axes: Axes, record: Record) -> None:
    labels = [f"{k}:{m}" for k, m in (cut["at"] for cut in record["cuts"])]
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", labelsize=7, labelrotation=0 if len(labels) < 10 else 90)
    axes.set_xlabel("cut, layers of A : of B below it")


def _draw_matrix(axes: Axes, values: Any, title: str) -> None:
    """Draw a matrix with a row for each cut of A, the lowest at the bottom."""
    array = np.array(numbers([value for row in values for value in row])).reshape(len(values), -1)
    finite = array[np.isfinite(array)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    axes.imshow(
        array, cmap=SHADES, vmin=min(low, 0), vmax=high or 1.0, origin="lower", aspect="auto", interpolation="nearest"
    )
    if max(array.shape) <= MAX_NUMBERED:
        for row, column in np.argwhere(np.isfinite(array)):
            value = array[row, column]
            shade = ON_DARK if value > 0.55 * high else ON_LIGHT
            text = f"{value:.2f}".replace("-0.00", "0.00")
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=shade)
    axes.grid(visible=False)
    axes.set(xlabel="cut of B", ylabel="cut of A", title=title)
    axes.set_xticks(range(array.shape[1]))
    axes.set_yticks(range(array.shape[0]))
    axes.title.set_fontsize(9)
