"""Figures of a linearity study: components, models with linear maps in them, layers out of order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evals.report.surgery.panels import (
    Points,
    draw_cloud,
    draw_frame,
    draw_legend,
    draw_line,
    panels_of,
    points_of,
    share_range,
)
from evals.report.surgery.tables import (
    COMPONENTS,
    REPLACED,
    Record,
    correlation,
    leading,
    of_part,
)
from evals.report.svg import short
from merge.publish.figures import INK, figure_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# What is below is off the axis of R2, where it would hide the differences of the other components.
LEAST_R2 = -0.25


def linearity_figures(record: Record) -> dict[str, tuple[Figure, str]]:
    """Return name -> figure and its description: non-linearity, replaced components, commutativity."""
    figures = {}
    if record["components"]:
        figures["components"] = (_components_figure(record), "Non-linearity of each component by layer.")
    if of_part(record, "replace", "remove"):
        figures["replaced"] = (
            _replaced_figure(record),
            f"{leading(record)} with components as linear maps or removed.",
        )
    if len(of_part(record, "swaps", "reversals", "shuffles")) > 1:
        label = f"{leading(record)} over how far layers are moved from their order."
        figures["commutativity"] = (_commutativity_figure(record), label)
    return figures


def _components_figure(record: Record) -> Figure:
    from matplotlib.figure import Figure

    measured = {name: [each for each in record["components"] if each["component"] == name] for name in COMPONENTS}
    with figure_settings():
        figure = Figure(figsize=(10.8, 5.6), layout="constrained")
        panels = list(figure.subplots(2, 3).flat)
        tokens = f"{record['tokens']:,} tokens, {record['held_out']:,} held out"
        title = f"{short(record['models'][0]['name'], 60)}   {record['data']}: {tokens}"
        figure.suptitle(title, x=0.012, ha="left", fontsize=9)
        handles: list[Any] = []
        for axes, name in zip(panels, COMPONENTS, strict=False):
            rows = measured[name]
            handles.append(draw_line(axes, [(r["layer"], r["nonlinearity"]) for r in rows], 0, "best linear map"))
            handles.append(_baseline(axes, rows, "of_mean", "the mean output (no skill)", ":"))
            if rows[0]["of_skip"] is not None:
                handles.append(_baseline(axes, rows, "of_skip", "the skip connection alone", "--"))
            axes.set_title(_words(name), loc="left", fontsize=9)
            axes.set(xlabel="layer", ylabel="1 - cosine", ylim=(0, None))
            axes.locator_params(axis="x", integer=True)
        last = panels[len(COMPONENTS)]
        for at, name in enumerate(COMPONENTS):
            handles.append(
                draw_line(last, [(r["layer"], r["r2"]) for r in measured[name]], at + 1, f"R2: {_words(name)}")
            )
        last.axhline(0, color=INK, linestyle=":", linewidth=1.0)
        least = last.get_ylim()[0]
        cut = f"; cut at {LEAST_R2:g}" if least < LEAST_R2 else ""
        last.set_title(f"R2 of the map (0: no skill{cut})", loc="left", fontsize=9)
        last.set(xlabel="layer", ylabel="R2")
        last.set_ylim(max(LEAST_R2, least), 1.03)
        last.locator_params(axis="x", integer=True)
        draw_legend(figure, handles, 4)
        return figure


def _words(component: str) -> str:
    return component.replace("ffn", "feed-forward part")


def _baseline(axes: Axes, rows: Sequence[Mapping[str, Any]], measure: str, label: str, style: str) -> Any:
    (line,) = axes.plot(
        [r["layer"] for r in rows],
        [r[measure] for r in rows],
        color=INK,
        linestyle=style,
        linewidth=1.0,
        label=label,
        zorder=2,
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
        ("linear maps from the front", "replace", "from the front", "layers replaced"),
        ("linear maps from the back", "replace", "from the back", "layers replaced"),
    ]
    shown = [each for each in asked if any((each[1], f"{name}, {each[2]}") in kinds for name in REPLACED)]
    with figure_settings():
        figure, panels = panels_of(record, len(shown), 3.8)
        handles: list[Any] = []
        for axes, (title, part, kind, xlabel) in zip(panels, shown, strict=True):
            handles += draw_frame(record, axes)
            for at, name in enumerate(REPLACED):
                points = [*points_of(record, kinds.get((part, f"{name}, {kind}"), []))]
                points += _cumulative_ends(record, kinds, name, kind)
                if points:
                    handles.append(draw_line(axes, points, at, _words(name)))
            axes.set_title(title, loc="left", fontsize=9)
            axes.set_xlabel(xlabel)
            axes.locator_params(axis="x", integer=True)
        share_range(panels, leading(record))
        draw_legend(figure, handles, 6)
        return figure


def _cumulative_ends(record: Record, kinds: Mapping[tuple[str, str], Sequence[Any]], name: str, kind: str) -> Points:
    """Return the ends of a cumulative curve that other models are: one layer replaced, and all of them."""
    if kind == "one":
        return []
    total = record["layers"]
    first = 0 if kind == "from the front" else total - 1
    points = [(1.0, y) for x, y in points_of(record, kinds.get(("replace", f"{name}, one"), [])) if x == first]
    if kind == "from the back":
        front = points_of(record, kinds.get(("replace", f"{name}, from the front"), []))
        points += [(x, y) for x, y in front if x == total]
    return points


def _commutativity_figure(record: Record) -> Figure:
    total = record["layers"]
    shuffled = [v for v in of_part(record, "shuffles") if v["kind"] == "k layers fixed"]
    asked: list[tuple[str, list[Any], Callable[[Any], float]]] = [
        ("distance of two swapped layers", [v for v in of_part(record, "swaps") if v["at"]], lambda v: v["at"]),
        ("layers in a reversed range", of_part(record, "reversals"), lambda v: v["at"]),
        ("layers that a shuffle keeps in their slots", shuffled, lambda v: total - v["at"]),
    ]
    shown = [each for each in asked if each[1]]
    with figure_settings():
        figure, panels = panels_of(record, len(shown), 3.8)
        handles: list[Any] = []
        for at, (axes, (title, variants, place)) in enumerate(zip(panels, shown, strict=True)):
            handles += draw_frame(record, axes)
            points = points_of(record, variants, place)
            handles += draw_cloud(axes, points, at)
            axes.set_xlabel(title)
            axes.locator_params(axis="x", integer=True)
            if (value := correlation(points)) is not None:
                axes.set_title(f"Pearson {value:.2f}, {len(points)} models", loc="left", fontsize=9)
        share_range(panels, leading(record))
        draw_legend(figure, handles)
        return figure
