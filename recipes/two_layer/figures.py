"""The figures of the study, from its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from two_layer.study import REDUCTIONS

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#555555"
SMALLEST = 1e-5  # what a logarithmic axis shows of a zero


def _axes(columns: int, width: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.6), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw(axis: Any, x: Sequence[Any], points: Sequence[Sequence[float]], label: str, colour: str, style: str) -> None:
    """Draw medians with a band between the quartiles."""
    low, median, high = ([max(point[k], SMALLEST) for point in points] for k in (2, 3, 4))
    axis.plot(x, median, style, color=colour, label=label, markersize=4)
    axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)


def _by_width(axis: Any, title: str, ylabel: str) -> None:
    axis.set(xscale="log", yscale="log", xlabel="hidden units", ylabel=ylabel, title=title)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.legend(frameon=False, fontsize=8)


def barriers_by_width(zoos: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw the naive and the matched barrier against the width, a panel a data set."""
    figure, axes = _axes(len(zoos), 4.6 * len(zoos))
    for axis, (name, records) in zip(axes, zoos.items(), strict=True):
        widths = [record["width"] for record in records]
        _draw(axis, widths, [r["naive"]["barrier"] for r in records], "naive", ORANGE, "o-")
        _draw(axis, widths, [r["matched"]["barrier"] for r in records], "matched", BLUE, "s-")
        _draw(axis, widths, [r["loss"] for r in records], "test loss of the networks", GREY, ":")
        _by_width(axis, name, "loss barrier (nats)")
    figure.savefig(path, dpi=150)


def reductions(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw test loss and barriers of networks without redundant units, with either factor, beside the whole networks."""
    figure, axes = _axes(3, 12.5)
    widths = [record["width"] for record in records]
    styles = dict(zip(REDUCTIONS, ((GREEN, "^-"), (RED, "v--"), (ORANGE, "x:")), strict=True))
    _draw(axes[0], widths, [r["loss"] for r in records], "whole", BLUE, "o-")
    for name, (colour, style) in styles.items():
        _draw(axes[0], widths, [r[name]["loss"] for r in records], name, colour, style)
    _by_width(axes[0], "test loss", "loss (nats)")
    for axis, how in zip(axes[1:], ("naive", "matched"), strict=True):
        _draw(axis, widths, [r[how]["barrier"] for r in records], "whole", BLUE, "o-")
        for name, (colour, style) in styles.items():
            _draw(axis, widths, [r[name][how]["barrier"] for r in records], name, colour, style)
        _by_width(axis, f"{how} barrier", "loss barrier (nats)")
    figure.savefig(path, dpi=150)


def epsilon_matrices(record: Mapping[str, Any], path: Path) -> None:
    """Draw epsilon between all pairs of one width, naive and matched, in the order of each one's dendrogram."""
    import numpy as np

    from evals.clusters.hierarchy import leaf_order, link

    figure, axes = _axes(2, 8.6)
    for axis, how in zip(axes, ("naive", "matched"), strict=True):
        matrix = np.array(record[how]["matrix"])
        order = list(leaf_order(link(matrix, "single", ordered=True)))
        image = axis.imshow(matrix[np.ix_(order, order)], cmap="viridis", vmin=0)
        figure.colorbar(image, ax=axis, label="epsilon (nats)")
        axis.set(xticks=[], yticks=[], xlabel="networks, neighbours together", title=f"{how}, width {record['width']}")
    figure.savefig(path, dpi=150)


def entezari(records: Mapping[str, Any], path: Path) -> None:
    """Draw barriers by depth and by difficulty, and what annealing and assignment leave of them."""
    figure, axes = _axes(3, 13.5)
    depth = records["depth"]
    for how, colour, style in (("naive", ORANGE, "o-"), ("matched", BLUE, "s-")):
        _draw(axes[0], [r["hidden layers"] for r in depth], [r[how] for r in depth], how, colour, style)
        hard = records["difficulty"]
        _draw(axes[1], range(len(hard)), [r[how] for r in hard], how, colour, style)
    axes[0].set(yscale="log", xlabel="hidden layers", ylabel="loss barrier (nats)", title="depth")
    axes[0].set_xticks([r["hidden layers"] for r in depth])
    axes[1].set(yscale="log", title="difficulty")
    axes[1].set_xticks(range(len(hard)), [r["task"].replace(", ", "\n") for r in hard], fontsize=7)
    searches = records["annealing"]
    names = [f"{r['networks']}\n{r['width']} units" for r in searches]
    for k, (how, colour) in enumerate((("naive", ORANGE), ("annealing", GREEN), ("assignment", BLUE))):
        places = [number + 0.27 * (k - 1) for number in range(len(searches))]
        heights = [r[how][0] for r in searches]
        axes[2].bar(places, heights, 0.25, color=colour, label=how, yerr=[r[how][1] for r in searches], ecolor=GREY)
    axes[2].set_xticks(range(len(names)), names, fontsize=7)
    axes[2].set(title="trained networks, and orders of one of them", ylabel="loss barrier (nats)")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
