"""Figures as files, and as SVG elements for a page."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.publish.figures import INK, PAPER, RULE, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Colours of a figure -> on the page, those of the light or dark mode.
THEME = {INK: "currentColor", RULE: "var(--rule)", PAPER: "var(--paper)", "#0072b2": "var(--blue)"}


def save_figure(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write <stem>.png and <stem>.svg; return both paths."""
    # Not with_suffix: a stem may contain a dot.
    png, svg = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    stem.parent.mkdir(parents=True, exist_ok=True)
    png.write_bytes(rendered(figure, "png"))
    svg.write_bytes(rendered(figure, "svg"))
    return png, svg


def inline_svg(figure: Figure, prefix: str, label: str) -> str:
    """Return the figure as an <svg> element for an HTML page, without links and comments, its ids prefixed.

    Args:
        figure: of barrier_figure or hans_figure.
        prefix: put before every id, since one page holds several figures.
        label: for screen readers; plain text, escaped here.
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


def numbers(values: Any) -> list[float]:
    """Return the values with nan, which matplotlib leaves out, where a score is undefined."""
    return [float("nan") if value is None else value for value in values]


def fraction_range(axes: Axes) -> None:
    """Let the values of an axis that shows a share or a correlation end at 1, and at 0 where none is below it."""
    low, high = axes.get_ylim()
    low = max(low, -0.03 * high) if axes.dataLim.y0 >= 0 else low
    axes.set_ylim(low, min(high, 1 + 0.03 * (1 - low)))


def short(name: str, length: int = 44) -> str:
    """Return a name shortened for a figure: of a long path the end, which distinguishes models best."""
    return name if len(name) <= length else "…" + name[-(length - 1) :]
