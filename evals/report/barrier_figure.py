"""The figure of a barrier record: loss and accuracy on the line between two models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.report.svg import fraction_range, numbers, save_figure, short
from evals.report.table_text import show
from evals.results.store import Record, model_labels
from merge.publish.figures import COLOURS, INK, MARKERS, PAPER, figure_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Characters of a name with which a legend in two columns is no wider than the figure.
MAX_TWO_COLUMNS = 80


def barrier_plot(record: Record, stem: Path) -> tuple[Path, Path]:
    """Write <stem>.png and <stem>.svg: loss and accuracy on the line from a to b, with the barrier of each curve."""
    return save_figure(barrier_figure(record), stem)


def barrier_figure(record: Record) -> Figure:
    """Return two panels over λ, loss and accuracy, with every curve of a barrier record in both."""
    from matplotlib.figure import Figure

    curves = record["curves"]
    with figure_settings():
        legend = [_legend_name(curve) for curve in curves]
        columns = 2 if max(map(len, legend)) <= MAX_TWO_COLUMNS else 1
        figure = Figure(figsize=(9.6, 3.9 + 0.4 * len(curves) / columns), layout="constrained")
        # A number is neither right nor wrong: a regression task has no second panel.
        classes = any(value is not None for curve in curves for value in curve["accuracy"])
        names = ("loss", "accuracy") if classes else ("squared error",)
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        loss, handles = panels[0], []
        for at, curve in enumerate(curves):
            if classes:
                _draw_curve(panels[1], curve["lam"], numbers(curve["accuracy"]), at)
            handles.append(_draw_curve(loss, curve["lam"], numbers(curve["loss"]), at))
        for axes, name in zip(panels, names, strict=True):
            axes.margins(y=0.12)
            axes.set(xlabel="λ (0 = a, 1 = b)", ylabel=name, xlim=(-0.04, 1.04))
        if classes:
            fraction_range(panels[1])
        calibrated = [_draw_calibrated(loss, curve, at) for at, curve in enumerate(curves) if curve.get("calibrated")]
        for at, curve in enumerate(curves):
            _draw_gap(loss, curve, at, shift=0.012 * (at - (len(curves) - 1) / 2))
        line, ends = handles[0][1:]
        figure.legend(
            [*(handle[0] for handle in handles), line, ends, *calibrated[:1]],
            [
                *legend,
                "straight line between the endpoints",
                "the models a and b",
                *["at the best temperature"][: len(calibrated)],
            ],
            loc="outside lower center",
            ncols=columns,
        )
        a, b = (short(name) for name in model_labels([record["a"], record["b"]]))
        title = f"a = {a},  b = {b}\n{record['task']}, {record['split']}, n = {record['n']:,}"
        figure.suptitle(title, x=0.012, ha="left", fontsize=9)
        return figure


def _legend_name(curve: Record) -> str:
    interval, error, calibrated = (curve.get(k) for k in ("barrier_interval", "standard_error", "calibrated_barrier"))
    name = f"{curve['name']}: barrier {show(curve['barrier'])}"
    if interval is not None:
        name += f" [{show(interval['low'])}, {show(interval['high'])}]"
    elif error is not None and curve.get("barrier_lam") not in (0, 1):  # a record of before the interval
        name += f" ± {show(error)}"
    return name + (f" (calibrated {show(calibrated)})" if calibrated is not None else "")


def _draw_curve(axes: Axes, lam: Sequence[float], values: Sequence[float], at: int) -> tuple[Any, Any, Any]:
    """Draw a curve, its endpoints and the straight line between them; return the legend handle of each."""
    ends, heights = [lam[0], lam[-1]], [values[0], values[-1]]
    colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
    (curve,) = axes.plot(lam, values, color=colour, marker=marker, markersize=3.5, linewidth=1.6, zorder=3)
    (line,) = axes.plot(ends, heights, color=INK, linestyle="--", linewidth=0.9, zorder=2)
    (dots,) = axes.plot(ends, heights, "o", markersize=8, color=PAPER, markeredgecolor=INK, zorder=4)
    return curve, line, dots


def _draw_calibrated(axes: Axes, curve: Record, at: int) -> Any:
    """Draw the calibrated losses, in the colour of their curve; return the legend handle."""
    colour = COLOURS[at % len(COLOURS)]
    (line,) = axes.plot(
        curve["lam"], numbers(curve["calibrated"]), color=colour, linestyle=":", linewidth=1.4, zorder=2.5
    )
    return line


def _draw_gap(axes: Axes, curve: Record, at: int, shift: float) -> None:
    """Draw the barrier: the largest height of the curve above the straight line.

    Two curves often have it at the same λ, so arrows are shifted, and every second one has its number on the left.
    """
    from matplotlib.patheffects import withStroke

    gap, peak, lam = curve["barrier"], curve["barrier_lam"], curve["lam"]
    if peak is None or gap is None or gap <= 0:
        return
    first, last = numbers([curve["loss"][0], curve["loss"][-1]])
    line = first + (last - first) * (peak - lam[0]) / (lam[-1] - lam[0])
    colour = COLOURS[at % len(COLOURS)]
    arrow = {"arrowstyle": "<->", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (peak + shift, line + gap), (peak + shift, line), arrowprops=arrow, zorder=5)
    # A number taller than its arrow would cover the curve, so it is written below the line.
    bottom, top = axes.get_ylim()
    tall = gap > 0.1 * (top - bottom)
    side = 1 if at % 2 == 0 else -1
    axes.annotate(
        show(gap),
        (peak + shift, line + gap / 2 if tall else line),
        xytext=(5 * side, 0) if tall else (2 * side, -4),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="center" if tall else "top",
        color=colour,
        weight="bold",
        path_effects=[withStroke(linewidth=3, foreground=PAPER)],
        zorder=6,
    )
