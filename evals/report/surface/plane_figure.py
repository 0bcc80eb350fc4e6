"""The figure of a plane: contours of the log loss and of the score, with the models and their average marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evals.report.svg import numbers, short
from evals.results.store import Record
from merge.publish.figures import INK, PAPER, figure_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = 14
# More marks than this are drawn without their names, but for the first, the last and the average.
MOST_NAMED = 8
COLOURS = {"loss": "viridis_r", "score": "viridis"}


def plane_figure(record: Record) -> Figure:
    """Return two panels, loss and score, over the plane of a plane record."""
    import numpy as np
    from matplotlib.figure import Figure

    points = record["points"]
    x, y, loss, score = (np.array(numbers([point[k] for point in points])) for k in (2, 3, 4, 6))
    for mark in record["marks"]:
        if mark["off"] <= 1e-6 * max(abs(x).max(), abs(y).max()):
            measured = (mark["x"], mark["y"], mark["loss"], numbers([mark["score"]])[0])
            x, y, loss, score = (np.append(a, b) for a, b in zip((x, y, loss, score), measured, strict=True))
    shape = min(max(float(np.ptp(y) / np.ptp(x)), 0.4), 1.4)
    with figure_settings():
        figure = Figure(figsize=(10.4, 1.1 + 3.9 * shape), layout="constrained")
        panels = figure.subplots(1, 2, squeeze=False)[0]
        levels = np.geomspace(max(float(np.nanmin(loss)), 1e-6) * 0.999, float(np.nanmax(loss)) * 1.001, LEVELS)
        _surface(
            panels[0], (x, y, np.clip(loss, levels[0], None)), "loss", levels, "loss (levels even in its logarithm)"
        )
        if np.isfinite(score).any():
            _surface(panels[1], (x, y, score), "score", None, record["score"].replace("_", " "))
        for panel in panels:
            panel.plot(x, y, ".", color=INK, markersize=1.4, alpha=0.5, zorder=3)
            _draw_marks(panel, record["marks"])
            panel.set(xlabel="distance of weights along u", ylabel="distance of weights along v", aspect="equal")
            panel.grid(False)
        title = f"plane {record['axes']}\n{record['task']}, {record['split']}, n = {record['n']:,}"
        figure.suptitle(title, x=0.012, ha="left", fontsize=9)
        return figure


def _surface(axes: Axes, points: tuple[Any, Any, Any], kind: str, levels: Any, title: str) -> None:
    """Draw filled contours of values at scattered points, linear between them (Delaunay's triangles)."""
    import numpy as np
    from matplotlib.colors import LogNorm

    x, y, values = points
    known = np.isfinite(values)
    if levels is None:
        low, high = float(values[known].min()), float(values[known].max())
        levels = np.linspace(low - 1e-6, max(high, low + 1e-3) + 1e-6, LEVELS)
    norm = LogNorm(levels[0], levels[-1]) if kind == "loss" else None
    drawn = axes.tricontourf(x[known], y[known], values[known], levels=levels, cmap=COLOURS[kind], norm=norm)
    axes.tricontour(x[known], y[known], values[known], levels=levels, colors=PAPER, linewidths=0.4, alpha=0.6)
    bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.85, pad=0.02)
    bar.set_ticks(list(levels[::3]))
    bar.set_ticklabels([f"{level:.3g}" for level in levels[::3]])
    bar.minorticks_off()
    axes.set_title(title, loc="left", fontsize=9, weight="bold")


def _draw_marks(axes: Axes, marks: Sequence[Record]) -> None:
    """Mark the models and their average; a line joins the checkpoints of a run."""
    from matplotlib.patheffects import withStroke

    models = [mark for mark in marks if mark["name"] != "average"]
    left, right = axes.get_xlim()
    if len(models) > 3:
        axes.plot([m["x"] for m in models], [m["y"] for m in models], color=INK, linewidth=0.9, zorder=4)
    for at, mark in enumerate(marks):
        average = mark["name"] == "average"
        axes.plot(
            mark["x"],
            mark["y"],
            "*" if average else "o",
            markersize=11 if average else 7,
            color=PAPER,
            markeredgecolor=INK,
            zorder=5,
        )
        if len(marks) <= MOST_NAMED or at in (0, len(models) - 1, len(marks) - 1):
            axes.annotate(
                short(mark["name"], 24),
                (mark["x"], mark["y"]),
                xytext=(6, 5) if mark["x"] < left + 0.7 * (right - left) else (-6, 5),
                ha="left" if mark["x"] < left + 0.7 * (right - left) else "right",
                textcoords="offset points",
                fontsize=8,
                path_effects=[withStroke(linewidth=3, foreground=PAPER)],
                zorder=6,
            )
