"""Layers as text: numbers and ranges, counted from 0."""

from __future__ import annotations

import re
from collections.abc import Sequence

from merge.errors import UsageError


def parse_layers(text: str, total: int | None = None) -> tuple[int, ...]:
    """Return the layers of a text such as "9-11,3", in its order; ranges include both ends.

    Args:
        total: the number of layers, as an upper limit; None for no limit.
    Raises:
        UsageError: the text has another form, a range is descending, or a layer is out of range.
    """
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part, re.ASCII)
        if match is None:
            raise UsageError(f"layers are numbers and ranges separated by commas, such as 9-11,3; found {text!r}.")
        start, end = int(match[1]), int(match[2] or match[1])
        if end < start:
            raise UsageError(
                f"the range {part.strip()} is descending. Put the smaller layer first, or list every layer."
            )
        layers += range(start, end + 1)
    if total is not None:
        check_range(layers, total, f"layers {text!r}")
    return tuple(layers)


def format_layers(layers: Sequence[int]) -> str:
    """Return layers as text that `parse_layers` reads back, with ranges for consecutive layers."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def check_range(layers: Sequence[int], total: int, what: str) -> None:
    wrong = [layer for layer in layers if not 0 <= layer < total]
    if wrong:
        raise UsageError(f"{what}: there is no layer {wrong[0]}; the model has {total}, 0 to {total - 1}.")
