"""Panels of studies of edited models: the scores that every panel is read against, points, lines, the legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evals.report.surgery.tables import (
    Record,
    leading,
    no_layers,
    score_of,
)
from evals.report.svg import fraction_range, short
from merge.publish.figures import COLOURS, INK, MARKERS, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]

# Scores that are not fractions.
UNBOUNDED = ("loss", "kl")


def panels_of(record: Record, count: int, height: float = 3.5) -> tuple[Figure, list[Axes]]:
    """Return a figure with some panels in a row, and its title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.6, 3.6 * count), height), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    rows = ", ".join(dict.fromkeys((record["task"], record["split"], f"n = {record['n']:,}")))
    title = f"{short(record['models'][0]['name'], 60)}   {rows}"
    figure.suptitle(title, x=0.012, ha="left", fontsize=9)
    return figure, panels


def draw_frame(record: Record, axes: Axes) -> list[Any]:
    """Draw the scores of the whole model, of the model without layers, and of what has no skill; return legend handles."""
    name = leading(record)
    handles = [axes.axhline(record["whole"][name], color=INK, linewidth=1.0, label="the whole model", zorder=1)]
    floor = no_layers(record)
    levels = [] if floor is None else [("no layers", floor["scores"][name], "--")]
    levels.append((f"{record['floor']['name']} (no skill)", record["floor"]["scores"][name], ":"))
    for words, value, style in levels:
        if value is not None and math.isfinite(value):
            handles.append(axes.axhline(value, color=INK, linestyle=style, linewidth=1.0, label=words, zorder=1))
    axes.set_ylabel(name)
    axes.margins(y=0.08)
    return handles


def draw_legend(figure: Figure, handles: Sequence[Any], columns: int = 3) -> None:
    named = {handle.get_label(): handle for handle in handles}
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns, fontsize=8)


def draw_line(axes: Axes, points: Points, at: int, label: str, **style: Any) -> Any:
    colour = COLOURS[at % len(COLOURS)]
    xs, ys = ([point[side] for point in sorted(points)] for side in (0, 1))
    settings = {"marker": MARKERS[at % len(MARKERS)], "markersize": 4, "linewidth": 1.4, "zorder": 3, **style}
    (line,) = axes.plot(xs, ys, color=colour, label=label, **settings)
    return line


def draw_cloud(axes: Axes, points: Points, at: int) -> list[Any]:
    """Draw a point for each model, and the mean at each place that has several; return legend handles."""
    xs, ys = ([point[side] for point in points] for side in (0, 1))
    axes.plot(
        xs, ys, linestyle="none", marker="o", markersize=4, alpha=0.4, color=COLOURS[at], markeredgewidth=0, zorder=2
    )
    places: dict[float, list[float]] = {}
    for x, y in points:
        places.setdefault(x, []).append(y)
    if len(places) < len(points):
        means = [(x, fmean(values)) for x, values in places.items()]
        draw_line(axes, means, at, "mean", marker="D", markersize=4, markeredgecolor=PAPER)
    if len(places) == 1:
        (place,) = places
        axes.set_xlim(place - 1, place + 1)
    plain = {"color": INK, "linestyle": "none"}
    (point,) = axes.plot([], [], marker="o", markersize=4, alpha=0.4, markeredgewidth=0, label="one model", **plain)
    (mean,) = axes.plot([], [], marker="D", markersize=4, label="mean of the models at one place", **plain)
    return [point, mean] if len(places) < len(points) else [point]


def points_of(
    record: Record, variants: Sequence[Mapping[str, Any]], place: Callable[[Any], float] = lambda v: v["at"]
) -> Points:
    scored = [(float(place(v)), score_of(record, v)) for v in variants]
    return [(x, y) for x, y in scored if y is not None and math.isfinite(y)]


def share_range(panels: Sequence[Axes], score: str) -> None:
    """Give panels of one score one range, within what the score can be."""
    for axes in panels if score not in UNBOUNDED else ():
        fraction_range(axes)
    low, high = min(axes.get_ylim()[0] for axes in panels), max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, high)
