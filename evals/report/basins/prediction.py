"""Predicted against measured loss of averages of several models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from merge.publish.figures import COLOURS, INK, MARKERS, PAPER, figure_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Average = Mapping[str, Any]


def prediction_figure(averages: Sequence[Average], special: Mapping[str, Average], note: str = "") -> Figure:
    """Return a scatter of the measured loss of averages over the predicted one, with the line where they are equal.

    Args:
        averages: each with `predicted` and `measured`, and `count` of its models.
        special: name -> an average that is marked and named, such as that of all models.
        note: a line above, such as the rank correlation and the largest error.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    with figure_settings():
        figure = Figure(figsize=(5.4, 4.4), layout="constrained")
        axes = figure.subplots()
        counts = sorted({average["count"] for average in averages})
        for at, count in enumerate(counts):
            inside = [average for average in averages if average["count"] == count]
            axes.plot(
                [average["predicted"] for average in inside],
                [average["measured"] for average in inside],
                linestyle="none",
                marker=MARKERS[at % len(MARKERS)],
                color=COLOURS[at % len(COLOURS)],
                alpha=0.85,
                markersize=5.5,
                markeredgewidth=0,
                label=f"{count} models",
                zorder=3,
            )
        for name, average in special.items():
            axes.plot(average["predicted"], average["measured"], "o", markersize=11, color="none", markeredgecolor=INK)
            axes.annotate(
                name,
                (average["predicted"], average["measured"]),
                xytext=(9, -9),
                textcoords="offset points",
                fontsize=7.5,
                path_effects=[withStroke(linewidth=3, foreground=PAPER)],
                zorder=2.5,  # over the line, under the markers
            )
        values = [a[key] for a in [*averages, *special.values()] for key in ("predicted", "measured")]
        ends = [min(values), max(values)]
        axes.plot(ends, ends, color=INK, linestyle="--", linewidth=0.9, label="predicted = measured", zorder=2)
        axes.margins(0.1)
        axes.set(xlabel="predicted loss of the average", ylabel="measured loss")
        if note:
            axes.set_title(note, loc="left", fontsize=9)
        figure.legend(loc="outside lower left", ncols=3)
        return figure
