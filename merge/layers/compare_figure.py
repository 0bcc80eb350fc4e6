"""The figure of a comparison: score against number of layers, one line a strategy, the floor of no layer below."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from merge.publish.figures import COLOURS, INK, MARKERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[str, int, float]  # label, layers, score
MANY = 18  # lines, from which on the legend is set smaller


def series_of(points: Sequence[Point]) -> Mapping[str, list[Point]]:
    """Return the points of each strategy or plan, by number of layers: `top 1, auto` and `top 2, auto` are both `top, auto`."""
    series: dict[str, list[Point]] = {}
    for point in sorted((point for point in points if point[1]), key=lambda point: point[1]):
        series.setdefault(re.sub(r"^(\S+) \d+(?=$|, )", r"\1", point[0]), []).append(point)
    return series


def comparison_figure(points: Sequence[Point], score: str) -> Figure:
    """Return the figure; what is repaired or healed has a solid line, in the colour of the dashed one that is as it was."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    series = series_of(points)
    plain = {name: [other for other in series if name.startswith(f"{other}, ")] for name in series}
    owners = {name: max(others, key=len) if others else name for name, others in plain.items()}
    numbers = {name: number for number, name in enumerate(dict.fromkeys(owners.values()))}
    figure = Figure(figsize=(8.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for name, line in series.items():
        number, repaired = numbers[owners[name]], bool(plain[name])
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            [layers for _, layers, _ in line],
            [value for _, _, value in line],
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            linestyle="-" if repaired else "--",
            linewidth=1.4,
            markerfacecolor=colour if repaired else "none",
            label=name,
        )
    if floor := [value for _, layers, value in points if not layers]:
        axes.axhline(floor[0], linestyle=":", color=INK, linewidth=1.0, label="no layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="layers", ylabel=score)
    figure.legend(loc="outside right upper", fontsize=8 if len(series) < MANY else 6)
    return figure
