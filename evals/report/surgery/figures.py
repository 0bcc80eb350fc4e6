"""Figures of studies of edited models; every panel has the whole model, the model without layers and what has no skill drawn in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evals.report.surgery.tables import (
    COMPONENTS,
    REPLACED,
    SINGLE,
    Record,
    correlation,
    leading,
    no_layers,
    of_part,
    score_of,
)
from evals.report.svg import short
from merge.publish.figures import COLOURS, INK, MARKERS, PAPER, figure_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]


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


def linearity_figures(record: Record) -> dict[str, tuple[Figure, str]]:
    """Return name -> figure and its description: non-linearity, replaced components, commutativity."""
    figures = {}
    if record["components"]:
        figures["components"] = (_components_figure(record), "Non-linearity of each component by layer.")
    if of_part(record, "replace", "remove"):
        figures["replaced"] = (_replaced_figure(record), f"{leading(record)} with components as linear maps or removed.")
    if len(of_part(record, "swaps", "reversals", "shuffles")) > 1:
        label = f"{leading(record)} over how far layers are moved from their order."
        figures["commutativity"] = (_commutativity_figure(record), label)
    return figures


FIGURES = {"lesion": lesion_figures, "linearity": linearity_figures}


def _panels(record: Record, count: int, height: float = 3.5) -> tuple[Figure, list[Axes]]:
    """Return a figure with some panels in a row, and its title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.6, 3.6 * count), height), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    title = f"{short(record['model']['name'], 60)}   {record['task']}, {record['split']}, n = {record['n']:,}"
    figure.suptitle(title, x=0.012, ha="left", fontsize=9)
    return figure, panels


def _frame(record: Record, axes: Axes) -> list[Any]:
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


def _legend(figure: Figure, handles: Sequence[Any], columns: int = 3) -> None:
    named = {handle.get_label(): handle for handle in handles}
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns, fontsize=8)


def _line(axes: Axes, points: Points, at: int, label: str, **style: Any) -> Any:
    colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
    xs, ys = ([point[side] for point in sorted(points)] for side in (0, 1))
    settings = {"markersize": 4, "linewidth": 1.4, "zorder": 3, **style}
    (line,) = axes.plot(xs, ys, color=colour, marker=marker, label=label, **settings)
    return line


def _cloud(axes: Axes, points: Points, at: int) -> None:
    """Draw a point for each model, and the mean at each place that has several."""
    xs, ys = ([point[side] for point in points] for side in (0, 1))
    axes.plot(xs, ys, linestyle="none", marker="o", markersize=4, alpha=0.4, color=COLOURS[at], markeredgewidth=0, zorder=2)
    places: dict[float, list[float]] = {}
    for x, y in points:
        places.setdefault(x, []).append(y)
    if len(places) < len(points):
        means = [(x, fmean(values)) for x, values in places.items()]
        _line(axes, means, at, "mean", marker="D", markersize=4, markeredgecolor=PAPER)


def _points(record: Record, variants: Sequence[Mapping[str, Any]], place: Callable[[Any], float] = lambda v: v["at"]) -> Points:
    scored = [(float(place(v)), score_of(record, v)) for v in variants]
    return [(x, y) for x, y in scored if y is not None and math.isfinite(y)]


def _layers_figure(record: Record) -> Figure:
    variants = of_part(record, "layers", "sublayers", "duplicates")
    kinds: dict[str, list[Any]] = {}
    for v in variants:
        kinds.setdefault("layer twice" if v["part"] == "duplicates" else v["kind"], []).append(v)
    groups = [
        [kind for kind in ("dropped", "layer twice") if kind in kinds],
        [kind for kind in SINGLE if kind.startswith("attention") and kind in kinds],
        [kind for kind in SINGLE if kind.startswith("ffn") and kind in kinds],
    ]
    titles = ("whole layers", "without attention", "without feed-forward part")
    shown = [(title, group) for title, group in zip(titles, groups, strict=True) if group]
    with figure_settings():
        figure, panels = _panels(record, len(shown), 3.9)
        handles: list[Any] = []
        for axes, (title, group) in zip(panels, shown, strict=True):
            handles += _frame(record, axes)
            for kind in group:
                label = {"dropped": "layer dropped"}.get(kind, kind.split(", ")[-1] if ", " in kind else kind)
                at = {"norm kept": 2, "norm bypassed": 3, "layer twice": 1}.get(label, 0)
                handles.append(_line(axes, _points(record, kinds[kind]), at, label))
            axes.set_title(title, loc="left", fontsize=9)
            axes.set_xlabel("layer")
            axes.locator_params(axis="x", integer=True)
        _share_range(panels)
        _legend(figure, handles)
        return figure


def _share_range(panels: Sequence[Axes]) -> None:
    """Give panels of one score one range."""
    low, high = min(axes.get_ylim()[0] for axes in panels), max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, high)


def _orders_figure(record: Record) -> Figure:
    single = [v for v in of_part(record, "layers")]
    asked = [
        ("random", "layers dropped at random", [*single, *of_part(record, "random")], lambda v: len(v["layers"])),
        ("orders", "Kendall's tau of the order", of_part(record, "orders"), lambda v: v["at"]),
    ]
    shown = [each for each in asked if of_part(record, each[0])]
    with figure_settings():
        figure, panels = _panels(record, len(shown), 3.8)
        handles: list[Any] = []
        for axes, (part, title, variants, place) in zip(panels, shown, strict=True):
            handles += _frame(record, axes)
            points = _points(record, variants, place)
            _cloud(axes, points, 0 if part == "random" else 1)
            axes.set_xlabel(title)
            if part == "orders" and (value := correlation(points)) is not None:
                axes.set_title(f"Pearson {value:.2f}, {len(points)} orders", loc="left", fontsize=9)
        _share_range(panels)
        _legend(figure, handles)
        return figure


def _paths_figure(record: Record) -> Figure:
    paths = record["paths"]
    total = sum(paths["counts"])
    lengths = range(len(paths["counts"]))
    with figure_settings():
        figure, (counts, norms, shares) = _panels(record, 3, 3.7)
        counts.bar(lengths, [count / total for count in paths["counts"]], color=COLOURS[1], label="share of paths")
        counts.set(xlabel="path length", ylabel="share of paths")
        _line(norms, list(zip(lengths, paths["norms"], strict=True)), 0, "through one path", markersize=3)
        line = norms.axhline(paths["whole"], color=INK, linewidth=1.0, label="the whole model's gradient")
        if min(paths["norms"]) > 0:
            norms.set_yscale("log")
        norms.set(xlabel="path length", ylabel="norm of the gradient of one path")
        bars = shares.bar(lengths, paths["shares"], color=COLOURS[0], label="share of gradient")
        (floor,) = shares.plot(
            lengths, [count / total for count in paths["counts"]], color=INK, linestyle="--", linewidth=1.0, marker="o", markersize=2.5,
            label="were all paths alike (share of paths)",
        )  # fmt: skip
        shares.set(xlabel="path length", ylabel="share of the summed gradient")
        for axes in (counts, norms, shares):
            axes.locator_params(axis="x", integer=True)
        _legend(figure, [line, bars, floor])
        return figure


def _components_figure(record: Record) -> Figure:
    from matplotlib.figure import Figure

    found = {name: [each for each in record["components"] if each["component"] == name] for name in COMPONENTS}
    with figure_settings():
        figure = Figure(figsize=(10.8, 5.6), layout="constrained")
        panels = list(figure.subplots(2, 3).flat)
        title = f"{short(record['model']['name'], 60)}   {record['data']}: {record['tokens']:,} tokens, {record['held_out']:,} held out"
        figure.suptitle(title, x=0.012, ha="left", fontsize=9)
        handles: list[Any] = []
        for axes, name in zip(panels, COMPONENTS, strict=False):
            rows = found[name]
            handles.append(_line(axes, [(r["layer"], r["nonlinearity"]) for r in rows], 0, "best linear map"))
            handles.append(_baseline(axes, rows, "of_mean", "the mean output (no skill)", ":"))
            if rows[0]["of_skip"] is not None:
                handles.append(_baseline(axes, rows, "of_skip", "the skip connection alone", "--"))
            axes.set_title(name, loc="left", fontsize=9)
            axes.set(xlabel="layer", ylabel="1 - cosine", ylim=(0, None))
            axes.locator_params(axis="x", integer=True)
        last = panels[len(COMPONENTS)]
        for at, name in enumerate(COMPONENTS):
            handles.append(_line(last, [(r["layer"], r["r2"]) for r in found[name]], at + 1, f"R2: {name}"))
        last.axhline(0, color=INK, linestyle=":", linewidth=1.0)
        last.set_title("R2 of the best linear map (0: no skill)", loc="left", fontsize=9)
        last.set(xlabel="layer", ylabel="R2")
        last.set_ylim(max(-0.25, last.get_ylim()[0]), 1.03)
        last.locator_params(axis="x", integer=True)
        _legend(figure, handles, 4)
        return figure


def _baseline(axes: Axes, rows: Sequence[Mapping[str, Any]], measure: str, label: str, style: str) -> Any:
    (line,) = axes.plot(
        [r["layer"] for r in rows], [r[measure] for r in rows], color=INK, linestyle=style, linewidth=1.0, label=label, zorder=2
    )
    return line


def _replaced_figure(record: Record) -> Figure:
    variants = of_part(record, "replace", "remove")
    kinds: dict[tuple[str, str], list[Any]] = {}
    for v in variants:
        kinds.setdefault((v["part"], v["kind"]), []).append(v)
    asked = [
        ("one as a linear map", "replace", "one", "layer"),
        ("one removed", "remove", "one", "layer"),
        ("linear maps from the front", "replace", "from the front", "layers"),
        ("linear maps from the back", "replace", "from the back", "layers"),
    ]
    shown = [each for each in asked if any((each[1], f"{name}, {each[2]}") in kinds for name in REPLACED)]
    with figure_settings():
        figure, panels = _panels(record, len(shown), 3.8)
        handles: list[Any] = []
        for axes, (title, part, kind, xlabel) in zip(panels, shown, strict=True):
            handles += _frame(record, axes)
            for at, name in enumerate(REPLACED):
                points = [*_points(record, kinds.get((part, f"{name}, {kind}"), []))]
                points += _cumulative_ends(record, kinds, name, kind)
                if points:
                    handles.append(_line(axes, points, at, name))
            axes.set_title(title, loc="left", fontsize=9)
            axes.set_xlabel(xlabel)
            axes.locator_params(axis="x", integer=True)
        _share_range(panels)
        _legend(figure, handles, 6)
        return figure


def _cumulative_ends(record: Record, kinds: Mapping[tuple[str, str], Sequence[Any]], name: str, kind: str) -> Points:
    """Return the ends of a cumulative curve that other models are: one layer replaced, and all of them."""
    if kind == "one":
        return []
    total = record["layers"]
    first = 0 if kind == "from the front" else total - 1
    points = [(1.0, y) for x, y in _points(record, kinds.get(("replace", f"{name}, one"), [])) if x == first]
    if kind == "from the back":
        front = _points(record, kinds.get(("replace", f"{name}, from the front"), []))
        points += [(x, y) for x, y in front if x == total]
    return points


def _commutativity_figure(record: Record) -> Figure:
    total = record["layers"]
    shuffled = [v for v in of_part(record, "shuffles") if v["kind"] == "k layers fixed"]
    asked = [
        ("distance of two swapped layers", [v for v in of_part(record, "swaps") if v["at"]], lambda v: v["at"]),
        ("layers in a reversed range", of_part(record, "reversals"), lambda v: v["at"]),
        ("layers that a shuffle keeps in their slots", shuffled, lambda v: total - v["at"]),
    ]
    shown = [each for each in asked if each[1]]
    with figure_settings():
        figure, panels = _panels(record, len(shown), 3.8)
        handles: list[Any] = []
        for at, (axes, (title, variants, place)) in enumerate(zip(panels, shown, strict=True)):
            handles += _frame(record, axes)
            points = _points(record, variants, place)
            _cloud(axes, points, at)
            axes.set_xlabel(title)
            axes.locator_params(axis="x", integer=True)
            if (value := correlation(points)) is not None:
                axes.set_title(f"Pearson {value:.2f}, {len(points)} models", loc="left", fontsize=9)
        _share_range(panels)
        _legend(figure, handles)
        return figure
