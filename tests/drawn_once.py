"""Pictures of match quality, of which each kind is drawn once by each process of the tests: a picture takes 0.2 CPU seconds.

tests/merge/alignment/evidence/test_quality.py looks at the pictures themselves, and draws them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merge.publish import alignment_plot

draw = alignment_plot.save_alignment_plot
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


def install() -> None:
    """Let runs of this process draw so; what was imported before draws every picture."""
    alignment_plot.save_alignment_plot = save_alignment_plot
