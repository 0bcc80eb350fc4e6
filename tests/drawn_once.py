"""Pictures, of which each kind is drawn once by each process of the tests: a picture takes 0.2 CPU seconds.

Tests that look at the pictures themselves draw them all: of match quality tests/merge/alignment/evidence/test_quality.py, of
evaluations those that use `all_drawn`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from evals.report import svg
from merge.publish import alignment_plot

draw, render = alignment_plot.save_alignment_plot, svg.rendered
DRAWN: dict[tuple[Any, ...], bytes] = {}


def kind(aligned: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    """Return what decides which lines and panels a picture has: all but the numbers and the names of the models."""
    return tuple(
        (
            record["by"],
            record["quality"]["measure"],
            *((axis["axis"], axis["layer"]) for axis in record["quality"]["axes"]),
        )
        for record in aligned
    )


def save_alignment_plot(folder: Path, aligned: Sequence[Mapping[str, Any]]) -> None:
    """Write alignment.png as the first picture of its kind was drawn."""
    if kind(aligned) not in DRAWN:
        draw(folder, aligned)
        DRAWN[kind(aligned)] = (folder / alignment_plot.FILE).read_bytes()
    (folder / alignment_plot.FILE).write_bytes(DRAWN[kind(aligned)])


def rendered(figure: Any, kind: str) -> bytes:
    """Return the bytes of the first figure of as many lines, points, bars and texts in as many panels of one size."""
    drawn = [Counter(type(part).__name__ for part in axes.get_children()) for axes in figure.axes]
    parts = tuple(tuple(sorted(counts.items())) for counts in drawn)
    key = (kind, tuple(figure.get_size_inches()), len(figure.texts), len(figure.legends), parts)
    if key not in DRAWN:
        DRAWN[key] = render(figure, kind)
    return DRAWN[key]


def install() -> None:
    """Let runs of this process draw so; what was imported before draws every picture."""
    alignment_plot.save_alignment_plot = save_alignment_plot
    svg.rendered = rendered


@pytest.fixture
def all_drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draw every figure of an evaluation."""
    with monkeypatch.context() as patch:
        patch.setattr(svg, "rendered", render)
        yield
