"""The figure of an interpolation from the start of training: loss and score, with the rise that is the smallest Delta."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evals.report.svg import fraction_range, numbers, short
from evals.report.table_text import show
from evals.results.store import Record
from merge.publish.figures import COLOURS, INK, MARKERS, figure_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def monotonic_figure(record: Record) -> Figure:
    """Return two panels over alpha, loss and score, with a curve for each model that is interpolated to."""
    from matplotlib.figure import Figure

    lines = record["lines"]
    with figure_settings():
        figure = Figure(figsize=(9.6, 3.9 + 0.2 * len(lines)), layout="constrained")
        loss, score = figure.subplots(1, 2, squeeze=False)[0]
        handles = []
        for at, line in enumerate(lines):
            style = {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at // len(COLOURS) % len(MARKERS)]}
            (drawn,) = loss.plot(line["alpha"], numbers(line["loss"]), markersize=3.5, linewidth=1.6, zorder=3, **style)
            score.plot(line["alpha"], numbers(line["scores"]), markersize=3.5, linewidth=1.6, zorder=3, **style)
            handles.append(drawn)
            low, high = line["delta_between"]
            if not line["monotone"]:
                ends = [line["loss"][line["alpha"].index(each)] for each in (low, high)]
                loss.plot([low, high], ends, color=INK, linestyle=":", linewidth=1, zorder=4)
                for bump in line["bumps"]:
                    loss.axvspan(bump["start"], bump["end"], color=style["color"], alpha=0.08, zorder=0)
        loss.set(xlabel="α (0 = start, 1 = end)", ylabel="loss")
        score.set(xlabel="α (0 = start, 1 = end)", ylabel=record["score"].replace("_", " "))
        fraction_range(score)
        names = [
            f"{short(line['name'])}: {'monotone' if line['monotone'] else 'smallest Δ ' + show(line['delta'])}"
            for line in lines
        ]
        figure.legend(handles, names, loc="outside lower center", ncols=2)
        start = short(record["models"][0]["name"])
        title = f"from {start}\n{record['task']}, {record['split']}, n = {record['n']:,}; shaded: bumps"
        figure.suptitle(title, x=0.012, ha="left", fontsize=9)
        return figure
