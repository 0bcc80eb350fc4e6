"""Figures of the results: the path between two models, and what makes any figure part of a page."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.report.tables import Record, model_labels, show
from merge.publish.figures import COLOURS, INK, MARKERS, PAPER, RULE, figure_settings, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# On the page these follow the reader's light or dark mode.
THEME = {INK: "currentColor", RULE: "var(--rule)", PAPER: "var(--paper)", "#0072b2": "var(--blue)"}


def barrier_plot(record: Record, stem: Path) -> tuple[Path, Path]:
    """Write <stem>.png and <stem>.svg: loss and accuracy on the way from a to b, with the barrier of each curve."""
    return _save(barrier_figure(record), stem)


def hans_plot(records: Sequence[Record], stem: Path) -> tuple[Path, Path]:
    """Write <stem>.png and <stem>.svg: the accuracy of every model on every HANS subcase."""
    from evals.report.hans_figure import hans_figure

    return _save(hans_figure(records), stem)


def _save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    # Not with_suffix: a stem may hold a dot of its own.
    png, svg = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    stem.parent.mkdir(parents=True, exist_ok=True)
    png.write_bytes(rendered(figure, "png"))
    svg.write_bytes(rendered(figure, "svg"))
    return png, svg


def inline_svg(figure: Figure, prefix: str, label: str) -> str:
    """Return the figure as an <svg> element for an HTML page: no links, no comments, ids of its own.

    Args:
        figure: what barrier_figure or hans_figure returned.
        prefix: put before every id, since one page holds several figures.
        label: what a screen reader says; plain text, escaped here.
    """
    text = rendered(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for colour, variable in THEME.items():
        text = text.replace(colour, variable)
    width = re.search(r'<svg[^>]*?\swidth="([\d.]+)pt"', text)
    assert width, "matplotlib writes the width of a figure in points"
    style = f'class="figure" style="width: {float(width[1]) * 4 / 3:.0f}px" role="img"'
    text = re.sub(r'\s(width|height)="[\d.]+pt"', "", text, count=2)
    text = text.replace("<svg", f'<svg {style} aria-label="{html.escape(label)}"', 1)
    return re.sub(r"\n\s*", "\n", text)


def barrier_figure(record: Record) -> Figure:
    """Return two panels over λ, loss and accuracy, with every curve of a barrier record in both."""
    from matplotlib.figure import Figure

    curves = record["curves"]
    with figure_settings():
        figure = Figure(figsize=(9.6, 3.9 + 0.2 * len(curves)), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        handles = []
        for at, curve in enumerate(curves):
            _draw_curve(accuracy, curve["lam"], numbers(curve["accuracy"]), at)
            handles.append(_draw_curve(loss, curve["lam"], numbers(curve["loss"]), at))
        for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
            axes.margins(y=0.12)
            axes.set(xlabel="λ (0 = a, 1 = b)", ylabel=name, xlim=(-0.04, 1.04))
        calibrated = [_draw_calibrated(loss, curve, at) for at, curve in enumerate(curves) if curve.get("calibrated")]
        for at, curve in enumerate(curves):
            _draw_gap(loss, curve, at, shift=0.012 * (at - (len(curves) - 1) / 2))
        line, ends = handles[0][1:]
        names = [_legend_name(curve) for curve in curves]
        figure.legend(
            [*(handle[0] for handle in handles), line, ends, *calibrated[:1]],
            [
                *names,
                "straight line between the ends",
                "the models a and b",
                *["at the best temperature"][: len(calibrated)],
            ],
            loc="outside lower center",
            ncols=2,
        )
        a, b = (short(name) for name in model_labels([record["a"], record["b"]]))
        title = f"a = {a},  b = {b}\n{record['task']}, {record['split']}, n = {record['n']:,}"
        figure.suptitle(title, x=0.012, ha="left", fontsize=9)
        return figure


def _legend_name(curve: Record) -> str:
    error, calibrated = curve.get("standard_error"), curve.get("calibrated_barrier")
    name = f"{curve['name']}: barrier {show(curve['barrier'])}" + (f" ± {show(error)}" if error is not None else "")
    return name + (f" (calibrated {show(calibrated)})" if calibrated is not None else "")


def _draw_curve(axes: Axes, lam: Sequence[float], values: Sequence[float], at: int) -> tuple[Any, Any, Any]:
    """Draw one curve with its ends and the straight line between them; return what a legend shows of each."""
    ends, heights = [lam[0], lam[-1]], [values[0], values[-1]]
    colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
    (curve,) = axes.plot(lam, values, color=colour, marker=marker, markersize=3.5, linewidth=1.6, zorder=3)
    (line,) = axes.plot(ends, heights, color=INK, linestyle="--", linewidth=0.9, zorder=2)
    (dots,) = axes.plot(ends, heights, "o", markersize=8, color=PAPER, markeredgecolor=INK, zorder=4)
    return curve, line, dots


def _draw_calibrated(axes: Axes, curve: Record, at: int) -> Any:
    """Draw the losses at the best temperature of each point, in the colour of their curve; return what a legend shows."""
    colour = COLOURS[at % len(COLOURS)]
    (line,) = axes.plot(
        curve["lam"], numbers(curve["calibrated"]), color=colour, linestyle=":", linewidth=1.4, zorder=2.5
    )
    return line


def _draw_gap(axes: Axes, curve: Record, at: int, shift: float) -> None:
    """Draw the barrier: the height of the curve above the straight line, where that is largest.

    Two curves often have it at the same λ: each arrow stands `shift` aside, and every second one writes on its left.
    """
    from matplotlib.patheffects import withStroke

    gap, where, lam = curve["barrier"], curve["barrier_lam"], curve["lam"]
    if where is None or gap is None or gap <= 0:
        return
    first, last = numbers([curve["loss"][0], curve["loss"][-1]])
    line = first + (last - first) * (where - lam[0]) / (lam[-1] - lam[0])
    colour = COLOURS[at % len(COLOURS)]
    arrow = {"arrowstyle": "<->", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (where + shift, line + gap), (where + shift, line), arrowprops=arrow, zorder=5)
    # A number taller than its gap would lie on the curve: it goes below the line instead.
    bottom, top = axes.get_ylim()
    tall = gap > 0.1 * (top - bottom)
    side = 1 if at % 2 == 0 else -1
    axes.annotate(
        show(gap),
        (where + shift, line + gap / 2 if tall else line),
        xytext=(5 * side, 0) if tall else (2 * side, -4),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="center" if tall else "top",
        color=colour,
        weight="bold",
        path_effects=[withStroke(linewidth=3, foreground=PAPER)],
        zorder=6,
    )


def numbers(values: Any) -> list[float]:
    """Return the values with nan, which matplotlib leaves out, where a score is undefined."""
    return [float("nan") if value is None else value for value in values]


def short(name: str, most: int = 44) -> str:
    """Return a name that fits a figure: the end of a long path says more than its start."""
    return name if len(name) <= most else "…" + name[-(most - 1) :]
