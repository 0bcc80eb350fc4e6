"""The figure of a plane: contours of the log loss and of the score, with the models and their average marked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evals.report.svg import numbers, short
from evals.results.store import Record
from merge.publish.figures import INK, PAPER, figure_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = 14
# About the width of a panel, and the size of the names of marks, in points.
PANEL_POINTS = 300.0
NAME_SIZE = 8
MARK_SIZE = 10.0
Box = tuple[float, float, float, float]  # x0, y0, x1, y1
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
    if len(models) > 3:
        axes.plot([m["x"] for m in models], [m["y"] for m in models], color=INK, linewidth=0.9, zorder=4)
    for mark in marks:
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
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    scale = PANEL_POINTS / (right - left)
    places = [((mark["x"] - left) * scale, (mark["y"] - low) * scale) for mark in marks]
    for at, offset in name_places(places, names_of(marks), (PANEL_POINTS, (high - low) * scale)).items():
        axes.annotate(
            names_of(marks)[at],
            (marks[at]["x"], marks[at]["y"]),
            xytext=offset,
            textcoords="offset points",
            fontsize=NAME_SIZE,
            path_effects=[withStroke(linewidth=3, foreground=PAPER)],
            zorder=6,
        )


def names_of(marks: Sequence[Record]) -> list[str]:
    """Return the names of marks as they are drawn: without the folder where they differ without it, and not too long."""
    ends = [mark["name"].rstrip("/").rsplit("/", 1)[-1] for mark in marks]
    return [short(name, 24) for name in (ends if len(set(ends)) == len(ends) else [mark["name"] for mark in marks])]


def name_places(
    places: Sequence[tuple[float, float]], names: Sequence[str], panel: tuple[float, float]
) -> dict[int, tuple[float, float]]:
    """Return the number of a mark -> where its name begins, from the mark; names that would cover others are left out.

    The average, the first and the last mark come first. Each name is tried above, beside and below its mark, to the right and
    to the left; of marks on one another the first has a name.

    Args:
        places: of the marks in the panel, in points.
        panel: its width and height, in points.
    """
    last = len(places) - 1
    first = dict.fromkeys([last, 0, max(last - 1, 0), *range(last + 1)])
    half = MARK_SIZE / 2
    marks, taken = [(x - half, y - half, x + half, y + half) for x, y in places], list[Box]()
    kept: dict[int, tuple[float, float]] = {}
    for at in first:
        (x, y), width = places[at], 0.62 * NAME_SIZE * len(names[at])
        if any(math.dist(places[other], (x, y)) < MARK_SIZE for other in kept):
            continue
        away = [other for other, place in zip(marks, places, strict=True) if math.dist(place, (x, y)) > MARK_SIZE]
        for side, height in itertools.product((6.0, -6.0 - width), (4.0, -3.0, -4.0 - NAME_SIZE)):
            offset = side + math.copysign(3.0, side) * (height == -3.0), height
            box = (x + offset[0], y + offset[1], x + offset[0] + width, y + offset[1] + NAME_SIZE)
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= panel[0] and box[3] <= panel[1]
            if inside and not any(_overlap(box, other) for other in (*away, *taken)):
                kept[at] = offset
                taken.append(box)
                break
    return kept


def _overlap(box: Box, other: Box) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
