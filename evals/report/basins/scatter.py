"""A scatter of models: a point for each, in the colour and marker of its cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

from evals.report.svg import short
from merge.publish.figures import COLOURS, INK, MARKERS, PAPER, figure_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Up to so many points bear their names.
MAX_NAMED = 16
# The height of a name, in points, and as a share of the height from the lowest point to the highest.
LINE_POINTS, LINE = 8.5, 0.052
# Characters of the title of an axis that is as long as the figure is high.
AXIS_CHARACTERS = 38


@dataclass(frozen=True)
class Axis:
    """The values of every model on one axis, with what they are."""

    title: str
    values: Sequence[float | None]


def scatter_figure(
    names: Sequence[str], x: Axis, y: Axis, groups: Sequence[int], group_names: Sequence[str], note: str = ""
) -> Figure:
    """Return a scatter of models.

    Args:
        groups: the group of each model, from 0, which decides its colour and marker.
        group_names: of the groups, for the legend; one group alone has no legend.
        note: a line above the points, such as a correlation.
    """
    from matplotlib.figure import Figure

    with figure_settings():
        legend = len(group_names) > 1
        figure = Figure(
            figsize=(5.4, 3.7 + (0.22 * math.ceil(len(group_names) / 2) if legend else 0)), layout="constrained"
        )
        axes = figure.subplots()
        points = [
            (name, a, b, group)
            for name, a, b, group in zip(names, x.values, y.values, groups, strict=True)
            if a is not None and b is not None
        ]
        handles = []
        for group in range(len(group_names)):
            inside = [(a, b) for _, a, b, other in points if other == group]
            handles.append(_draw_group(axes, inside, group, len(points)))
        if len(points) <= MAX_NAMED:
            _name_points(axes, points)
        axes.margins(0.12)
        axes.set(xlabel=x.title, ylabel=fill(y.title, AXIS_CHARACTERS))
        if note:
            axes.set_title(note, loc="left", fontsize=9)
        if legend:
            figure.legend(handles, list(group_names), loc="outside lower left", ncols=2)
        return figure


def _draw_group(axes: Axes, points: Sequence[tuple[float, float]], group: int, count: int) -> Any:
    (dots,) = axes.plot(
        [a for a, _ in points],
        [b for _, b in points],
        linestyle="none",
        marker=MARKERS[group % len(MARKERS)],
        color=COLOURS[group % len(COLOURS)],
        markersize=6 if count <= MAX_NAMED else 4.5,
        alpha=0.85,
        markeredgewidth=0,
        zorder=3,
    )
    return dots


def _name_points(axes: Axes, points: Sequence[tuple[str, float, float, int]]) -> None:
    """Write each name beside its point, towards the middle of the figure; names that would overlap move up or down."""
    from matplotlib.patheffects import withStroke

    low, high = min(a for _, a, _, _ in points), max(a for _, a, _, _ in points)
    lines = LINE * (max(b for _, _, b, _ in points) - min(b for _, _, b, _ in points))
    for right in (True, False):
        side = sorted((p for p in points if (p[1] <= (low + high) / 2) == right), key=lambda point: point[2])
        heights = spread([b for _, _, b, _ in side], lines)
        for (name, a, b, _), height in zip(side, heights, strict=True):
            axes.annotate(
                short(name, 22),
                (a, b),
                xytext=(7 if right else -7, 0 if not lines else LINE_POINTS * (height - b) / lines),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize=7,
                color=INK,
                path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
                zorder=4,
            )


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Return increasing values moved as little as the least distance `gap` between neighbours needs.

    Least squares with the differences at least `gap`: less k gap, the k-th value must not decrease, which pooling neighbours
    that do solves (isotonic regression).
    """
    blocks: list[list[float]] = []  # sum and number of the values of each block
    for at, value in enumerate(values):
        blocks.append([value - at * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [blocks[-1][0] + last[0], blocks[-1][1] + last[1]]
    level = [total / count for total, count in blocks for _ in range(int(count))]
    return [value + at * gap for at, value in enumerate(level)]
