"""Loss along the lines of a few pairs: those with the highest and lowest barrier inside clusters and between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evals.report.svg import numbers, short
from merge.publish.figures import COLOURS, MARKERS, figure_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Mapping[str, Any]
NAME_CHARACTERS = 72  # as long as the figure is wide


def curves_figure(panels: Mapping[str, Sequence[Curve]], lam: Sequence[float]) -> Figure:
    """Return a panel for each kind of pair, all of one height, with the curve of every pair in it.

    Args:
        panels: title -> curves, each with `name`, for the legend, and `loss` at every lam.
    """
    from matplotlib.figure import Figure

    with figure_settings():
        rows = max(map(len, panels.values()))
        figure = Figure(figsize=(5.4, len(panels) * (2.2 + 0.19 * rows)), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
        for panel, (title, curves) in zip(axes, panels.items(), strict=True):
            for at, curve in enumerate(curves):
                panel.plot(
                    lam,
                    numbers(curve["loss"]),
                    color=COLOURS[at % len(COLOURS)],
                    marker=MARKERS[at % len(MARKERS)],
                    markersize=3.5,
                    linewidth=1.5,
                    label=short(curve["name"], NAME_CHARACTERS),
                    zorder=3,
                )
            panel.set_title(title, loc="left", fontsize=9, weight="bold")
            panel.set_ylabel("loss")
            panel.legend(loc="upper left", bbox_to_anchor=(0, -0.03 if panel is not axes[-1] else -0.22), fontsize=7.5)
        axes[-1].set_xlabel("λ (0 = first, 1 = second model)")
        return figure
