"""The figure of a features record: LLFC and scale by site, additivity and commutativity by layer, each beside its baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evals.report.inside.features_tables import layer_rows
from evals.report.svg import numbers, short
from evals.report.tables import lam_text
from evals.results.store import model_labels
from merge.publish.figures import COLOURS, INK, MARKERS, figure_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]


def features_figure(record: Record) -> Figure:
    """Return panels: 1 - cosine by site and scale by site; additivity and commutativity by layer where they were measured."""
    from matplotlib.figure import Figure

    by_layer = len(layer_rows(record)) > 1
    with figure_settings():
        figure = Figure(figsize=(9.6, 7.4 if by_layer else 4.2), layout="constrained")
        distance, scale, *others = figure.subplots(1 + by_layer, 2).flat
        for at, curve in enumerate(record["curves"]):
            _draw_sites(distance, scale, curve, COLOURS[at % len(COLOURS)])
        _label_sites(distance, record)
        _label_sites(scale, record)
        distance.set(
            ylabel="1 - cos, mean ± s.d. over rows", title="LLFC: features of the average, average of features"
        )
        scale.axhline(1, color=INK, linestyle="--", linewidth=0.9, label="same scale")
        scale.set(ylabel="coefficient", title="LLFC: scale of the two")
        if by_layer:
            additive, commute = others
            _draw_layers(additive, record, ("own activation", "ReLU", "norms"), "control", "units of B in random order")
            additive.set(title="weak additivity of what is not linear", ylabel="|x - y|² / (|x| |y|)", xlabel="layer")
            _draw_commutativity(commute, record)
        for axes in (distance, scale, *others):
            axes.title.set_fontsize(9)
            count = len(axes.get_legend_handles_labels()[1])
            if axes.get_yscale() == "linear":
                _make_room(axes, axes is not scale, 0.09 * math.ceil(count / 2))
            axes.legend(fontsize=7, frameon=True, framealpha=0.8, edgecolor="none", loc="upper left", ncols=2)
        a, b = (short(name) for name in model_labels(record["models"]))
        title = f"A = {a},  B = {b}\n{record['data']}"
        figure.suptitle(title, x=0.012, ha="left", fontsize=9)
        return figure


def _make_room(axes: Axes, from_zero: bool, share: float) -> None:
    """Let the axis begin at 0 where it measures a distance, and leave a share of its height above the curves free."""
    low, high = axes.get_ylim()
    low = 0.0 if from_zero else low
    axes.set_ylim(low, high + share * (high - low))


def _draw_sites(distance: Axes, scale: Axes, curve: Record, colour: str) -> None:
    """Draw the curve of every lam with its spread over rows, and that of A against B as the baseline."""
    sites = curve["connectivity"]
    x = range(len(sites))
    baseline = numbers([site["baseline"]["rows"]["mean"] for site in sites])
    name = curve["name"].split(" (")[0]
    distance.plot(x, baseline, color=colour, linestyle="--", linewidth=1.0, label=f"{name}: A against B")
    for at, lam in enumerate(each["lam"] for each in sites[0]["at"]):
        spreads = [site["at"][at]["distance"]["rows"] for site in sites]
        mean, deviation = numbers([s["mean"] for s in spreads]), numbers([s["std"] for s in spreads])
        marker = MARKERS[at % len(MARKERS)]
        style = {"color": colour, "marker": marker, "markersize": 3, "linewidth": 1.4}
        distance.plot(x, mean, label=f"{name}: λ = {lam_text(lam)}", **style)
        low, high = zip(*((max(m - d, 0), m + d) for m, d in zip(mean, deviation, strict=True)), strict=True)
        distance.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        values = numbers([site["at"][at]["coefficient"] for site in sites])
        scale.plot(x, values, label=f"{name}: λ = {lam_text(lam)}", **style)


def _label_sites(axes: Axes, record: Record) -> None:
    """Name the sites: all of few, else the ends of layers."""
    names = [site["site"] for site in record["curves"][0]["connectivity"]]
    shown = [
        (at, name.removeprefix("layer "))
        for at, name in enumerate(names)
        if len(names) <= 16 or name.endswith("output")
    ]
    outside = [(at, name) for at, name in enumerate(names) if not name.startswith("layer ") and len(names) > 16]
    ticks = sorted({*shown, *outside})
    axes.set_xticks([at for at, _ in ticks], [name.replace(" output", " out") for _, name in ticks])
    axes.tick_params(axis="x", labelrotation=90, labelsize=7)
    axes.set_xlabel("site; numbers are those of layers", fontsize=7)


def _draw_layers(axes: Axes, record: Record, names: Sequence[str], control: str, label: str) -> None:
    """Draw additivity by layer, each function beside its control."""
    header, *rows = layer_rows(record)
    layers = [int(str(row[0])) for row in rows]
    width = (len(header) - 1) // len(record["curves"])
    for at, curve in enumerate(record["curves"]):
        for number, name in enumerate(names):
            column = 1 + at * width + 2 * number
            values, floor = ([row[column + k] for row in rows] for k in (0, 1))
            if all(value is None for value in values):
                continue
            colour = COLOURS[(at * len(names) + number) % len(COLOURS)]
            prefix = f"{curve['name'].split(' (')[0]}: " if len(record["curves"]) > 1 else ""
            axes.plot(
                layers, numbers(values), color=colour, marker=MARKERS[number], markersize=3.5, label=f"{prefix}{name}"
            )
            axes.plot(layers, numbers(floor), color=colour, linestyle=":", marker="_", linewidth=1.0)
    axes.plot([], [], color=INK, linestyle=":", marker="_", linewidth=1.0, label=f"{control}: {label}")
    axes.set_xticks(layers)


def _draw_commutativity(axes: Axes, record: Record) -> None:
    header, *rows = layer_rows(record)
    layers, width = [int(str(row[0])) for row in rows], (len(header) - 1) // len(record["curves"])
    styles = {"Dist_com": "-", "Dist_W": ":", "Dist_H": "--"}
    words = {"Dist_W": "Dist_W, of the weights", "Dist_H": "Dist_H, of the inputs"}
    for at, curve in enumerate(record["curves"]):
        for number, (name, style) in enumerate(styles.items()):
            values = numbers([row[1 + at * width + 6 + number] for row in rows])
            prefix = f"{curve['name'].split(' (')[0]}: " if len(record["curves"]) > 1 else ""
            marker = MARKERS[at] if name == "Dist_com" else "_"  # seen where there is one layer alone
            axes.plot(
                layers,
                values,
                style,
                color=COLOURS[at],
                marker=marker,
                markersize=4,
                label=f"{prefix}{words.get(name, name)}",
            )
    axes.set(title="commutativity of weights and features", xlabel="layer", ylabel="distance, mean over linear layers")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.25)  # for the legend
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda _value, _: "")
    axes.set_xticks(layers)
