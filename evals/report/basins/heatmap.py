"""The heatmap of the distances between models, in the order of the dendrogram beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.report.svg import short
from merge.publish.figures import COLOURS, INK, PAPER, RULE, figure_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Up to so many models a cell is wide enough for its number, and up to so many a row for its name.
MAX_NUMBERED, MAX_NAMED = 12, 40
# Of numbers in cells: black and white on the page of either mode, unlike INK and PAPER.
ON_LIGHT, ON_DARK = "#111111", "#fdfdfd"
# White to dark blue: readers who see no colours read the order too.
SHADES = "Blues"


def heatmap_figure(names: Sequence[str], distances: Any, linkage: Any, clusters: Sequence[int], summary: str) -> Figure:
    """Return the distances of all pairs as a heatmap, rows and columns in the order of the dendrogram.

    Args:
        names: of the models, shape (n,).
        distances: symmetric, shape (n, n); nan where a pair was not measured. The diagonal is not drawn.
        linkage: of scipy, shape (n - 1, 4); None leaves the models in the order of their clusters, without a dendrogram.
        clusters: the cluster of each model, from 0; -1 is drawn as none.
        summary: what the distance is, for the colour bar.
    """
    from matplotlib.figure import Figure

    values = np.array(distances, dtype=np.float64)
    np.fill_diagonal(values, np.nan)
    count = len(names)
    with figure_settings():
        cell = 0.42 if count <= MAX_NUMBERED else max(0.05, 4.6 / count)
        side = cell * count
        figure = Figure(figsize=(side + 2.1, side + 1.75), layout="constrained")
        grid = figure.add_gridspec(3, 1, height_ratios=(0.55, side, 0.12)) if linkage is not None else None
        if grid is None:
            grid = figure.add_gridspec(3, 1, height_ratios=(0.01, side, 0.12))
        top, middle, bottom = (figure.add_subplot(grid[at]) for at in range(3))
        order = (
            _draw_dendrogram(top, linkage, clusters)
            if linkage is not None
            else list(np.argsort(clusters, kind="stable"))
        )
        image = _draw_cells(middle, values[np.ix_(order, order)], count)
        _label_rows(middle, [short(names[at], 30) for at in order], [clusters[at] for at in order])
        if linkage is None:
            top.set_axis_off()
        bar = figure.colorbar(image, cax=bottom, orientation="horizontal")
        bar.set_label(summary)
        bar.outline.set_visible(False)
        return figure


def _draw_dendrogram(axes: Axes, linkage: Any, clusters: Sequence[int]) -> list[int]:
    """Draw the tree, a branch in the colour of the cluster that all its leaves belong to; return the order of the leaves."""
    from scipy.cluster.hierarchy import dendrogram

    links = np.asarray(linkage, dtype=np.float64)
    count = len(clusters)
    members: list[set[int]] = [{cluster} for cluster in clusters]
    for left, right, *_ in links:
        members.append(members[int(left)] | members[int(right)])

    def colour(node: int) -> str:
        return _colour(next(iter(members[node]))) if len(members[node]) == 1 else INK

    tree = dendrogram(links, no_plot=True, link_color_func=colour)
    for x, height, shade in zip(tree["icoord"], tree["dcoord"], tree["color_list"], strict=True):
        # scipy puts leaf k at 10 k + 5; the cells of the heatmap are 1 wide.
        axes.plot([(value - 5) / 10 for value in x], height, color=shade, linewidth=1.3, solid_joinstyle="miter")
    axes.set(xlim=(-0.5, count - 0.5), ylim=(0, None))
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=7)
    axes.locator_params(axis="y", nbins=2)
    return [int(leaf) for leaf in tree["leaves"]]


def _draw_cells(axes: Axes, values: Any, count: int) -> Any:
    """Draw the matrix; up to MAX_NUMBERED models also the numbers."""
    from matplotlib import colormaps

    shades = colormaps[SHADES].with_extremes(bad=RULE)
    measured = values[np.isfinite(values)]
    top = float(measured.max()) if measured.size and measured.max() > 0 else 1.0
    image = axes.imshow(values, cmap=shades, vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    if count <= MAX_NUMBERED:
        digits = 2 if top >= 0.1 else 3
        for row, column in np.argwhere(np.isfinite(values)):
            value = values[row, column]
            text = f"{value:.{digits}f}".removeprefix("0")
            shade = ON_DARK if value > 0.55 * top else ON_LIGHT
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=shade)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def _label_rows(axes: Axes, names: Sequence[str], clusters: Sequence[int]) -> None:
    """Write the names to the right, and draw the colour of each model's cluster between cells and names."""
    from matplotlib.patches import Rectangle

    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks(range(len(names)) if len(names) <= MAX_NAMED else [], names if len(names) <= MAX_NAMED else [])
    axes.tick_params(axis="y", length=0, pad=12)
    width = 0.018
    for row, cluster in enumerate(clusters):
        strip = Rectangle(
            (1.012, row - 0.5),
            width,
            1,
            transform=axes.get_yaxis_transform(),
            facecolor=_colour(cluster),
            edgecolor=PAPER,
            linewidth=0.6 if len(names) <= MAX_NAMED else 0,
            clip_on=False,
        )
        axes.add_patch(strip)


def _colour(cluster: int) -> str:
    return INK if cluster < 0 else COLOURS[cluster % len(COLOURS)]
