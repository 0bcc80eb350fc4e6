"""Figures of a lesion study: single lesions, random lesions and orders, paths and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from evals.report.surgery.panels import (
    draw_cloud,
    draw_frame,
    draw_legend,
    draw_line,
    panels_of,
    points_of,
    share_range,
)
from evals.report.surgery.tables import (
    SINGLE,
    Record,
    correlation,
    leading,
    of_part,
)
from merge.publish.figures import COLOURS, INK, figure_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lesion_figures(record: Record) -> dict[str, tuple[Figure, str]]:
    """Return name -> figure and its description: single lesions, random lesions and orders, paths."""
    figures = {}
    if of_part(record, "layers", "sublayers", "duplicates"):
        figures["layers"] = (_layers_figure(record), f"{leading(record)} without each layer and each of its sublayers.")
    if of_part(record, "random", "orders"):
        label = f"{leading(record)} over the number of layers dropped, and over Kendall's tau of their order."
        figures["orders"] = (_orders_figure(record), label)
    if record["paths"] is not None:
        figures["paths"] = (_paths_figure(record), "Paths, the gradient of one, and their product by length.")
    return figures


def _layers_figure(record: Record) -> Figure:
    variants = of_part(record, "layers", "sublayers", "duplicates")
    kinds: dict[str, list[Any]] = {}
    for v in variants:
        kinds.setdefault("layer twice" if v["part"] == "duplicates" else v["kind"], []).append(v)
    groups: list[list[str]] = [
        [kind for kind in ("dropped", "layer twice") if kind in kinds],
        [kind for kind in SINGLE if kind.startswith("attention") and kind in kinds],
        [kind for kind in SINGLE if kind.startswith("ffn") and kind in kinds],
    ]
    titles = ("whole layers", "without attention", "without feed-forward part")
    shown: list[tuple[str, list[str]]] = [(t, group) for t, group in zip(titles, groups, strict=True) if group]
    with figure_settings():
        figure, panels = panels_of(record, len(shown), 3.9)
        handles: list[Any] = []
        for axes, (title, group) in zip(panels, shown, strict=True):
            handles += draw_frame(record, axes)
            for kind in group:
                label = {"dropped": "layer dropped"}.get(kind, kind.split(", ")[-1] if ", " in kind else kind)
                at = {"norm kept": 2, "norm bypassed": 3, "layer twice": 1}.get(label, 0)
                handles.append(draw_line(axes, points_of(record, kinds[kind]), at, label))
            axes.set_title(title, loc="left", fontsize=9)
            axes.set_xlabel("layer")
            axes.locator_params(axis="x", integer=True)
        share_range(panels, leading(record))
        draw_legend(figure, handles)
        return figure


def _orders_figure(record: Record) -> Figure:
    single = of_part(record, "layers")
    asked: list[tuple[str, str, list[Any], Callable[[Any], float]]] = [
        ("random", "layers dropped", [*single, *of_part(record, "random")], lambda v: len(v["layers"])),
        ("orders", "Kendall's tau of the order", of_part(record, "orders"), lambda v: v["at"]),
    ]
    shown = [each for each in asked if of_part(record, each[0])]
    with figure_settings():
        figure, panels = panels_of(record, len(shown), 3.8)
        handles: list[Any] = []
        for axes, (part, title, variants, place) in zip(panels, shown, strict=True):
            handles += draw_frame(record, axes)
            points = points_of(record, variants, place)
            handles += draw_cloud(axes, points, 0 if part == "random" else 1)
            axes.set_xlabel(title)
            axes.locator_params(axis="x", nbins=6, integer=part == "random")
            if part == "orders" and (value := correlation(points)) is not None:
                axes.set_title(f"Pearson {value:.2f}, {len(points)} orders", loc="left", fontsize=9)
        share_range(panels, leading(record))
        draw_legend(figure, handles)
        return figure


def _paths_figure(record: Record) -> Figure:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    paths = record["paths"]
    total = sum(paths["counts"])
    lengths = range(len(paths["counts"]))
    with figure_settings():
        figure, (counts, norms, shares) = panels_of(record, 3, 3.7)
        counts.bar(lengths, [count / total for count in paths["counts"]], color=COLOURS[1], label="share of paths")
        counts.set(xlabel="path length", ylabel="share of paths")
        draw_line(norms, list(zip(lengths, paths["norms"], strict=True)), 0, "through one path", markersize=3)
        line = norms.axhline(paths["whole"], color=INK, linewidth=1.0, label="the whole model's gradient")
        if min(paths["norms"]) > 0:
            norms.set_yscale("log")
            norms.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            norms.yaxis.set_minor_formatter(NullFormatter())
        norms.set(xlabel="path length", ylabel="norm of the gradient of one path")
        bars = shares.bar(lengths, paths["shares"], color=COLOURS[0], label="share of gradient")
        (floor,) = shares.plot(
            lengths, [count / total for count in paths["counts"]], color=INK, linestyle="--", linewidth=1.0,
            marker="o", markersize=2.5,
            label="share of paths: what equal gradients would give",
        )  # fmt: skip
        shares.set(xlabel="path length", ylabel="share of the summed gradient")
        for axes in (counts, norms, shares):
            axes.locator_params(axis="x", integer=True)
        draw_legend(figure, [line, bars, floor])
        return figure
