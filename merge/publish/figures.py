"""Style of all figures.

The same record gives the same bytes: matplotlib's default style whatever the user's is, a fixed salt, no date. Text
becomes outlines, so that a figure looks the same on a machine without the font.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; its yellow is too faint for a line.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, RULE, PAPER = "#1f2328", "#d8dee4", "#ffffff"
DPI = 150


def rendered(figure: Figure, kind: str) -> bytes:
    """Return a figure as the bytes of a png or svg file."""
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None, "Format": None, "Type": None}
    buffer = BytesIO()
    with figure_settings():
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


@contextmanager
def figure_settings() -> Iterator[None]:
    """Set the style of all our figures for the code inside."""
    import matplotlib
    import matplotlib.style

    style = {
        "svg.hashsalt": "merge-models",
        "svg.fonttype": "path",
        "text.parse_math": False,  # a model's name may hold a dollar sign
        "font.size": 9,
        "figure.facecolor": PAPER,
        "axes.facecolor": PAPER,
        "axes.edgecolor": RULE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "xtick.color": RULE,
        "ytick.color": RULE,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "text.color": INK,
        "axes.labelcolor": INK,
        "legend.frameon": False,
    }
    with matplotlib.style.context("default"), matplotlib.rc_context(style):
        yield
