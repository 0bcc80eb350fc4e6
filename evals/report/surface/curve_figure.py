"""The figure of a curve record: loss and score along each trained curve and straight line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evals.report.svg import fraction_range, numbers, short
from evals.report.table_text import show
from evals.results.store import Record, model_labels
from merge.publish.figures import COLOURS, INK, PAPER, figure_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curve_figure(record: Record) -> Figure:
    """Return two panels over t, loss and score; straight lines are dashed, what is aligned has another colour."""
    from matplotlib.figure import Figure

    curves = record["curves"]
    with figure_settings():
        figure = Figure(figsize=(9.6, 3.9 + 0.2 * len(curves)), layout="constrained")
        panels = figure.subplots(1, 2, squeeze=False)[0]
        handles: list[Any] = []
        for at, curve in enumerate(curves):
            trained = "training" in curve
            colour, dash, marker = COLOURS[at // 2 % len(COLOURS)], "-" if trained else "--", "o" if trained else "s"
            for panel, what in zip(panels, ("loss", "scores"), strict=True):
                (drawn,) = panel.plot(
                    curve["t"],
                    numbers(curve[what]),
                    dash,
                    color=colour,
                    marker=marker,
                    markersize=3.5,
                    linewidth=1.6,
                    zorder=3,
                )
                ends = numbers([curve[what][0], curve[what][-1]])
                panel.plot([0, 1], ends, "o", markersize=8, color=PAPER, markeredgecolor=INK, zorder=4)
            handles.append(drawn)
        for panel, name in zip(panels, ("loss", record["score"].replace("_", " ")), strict=True):
            panel.set(xlabel="t (0 = a, 1 = b)", ylabel=name, xlim=(-0.04, 1.04))
            panel.margins(y=0.12)
        fraction_range(panels[1])
        figure.legend(
            handles, [f"{c['name']}: barrier {show(c['barrier'])}" for c in curves], loc="outside lower center", ncols=2
        )
        a, b = (short(name) for name in model_labels(record["models"]))
        title = f"a = {a},  b = {b}\n{record['task']}, {record['split']}, n = {record['n']:,}"
        figure.suptitle(title, x=0.012, ha="left", fontsize=9)
        return figure
