"""Gradients: settings that change from the first layer to the last, written {gradient: [first, ..., last]}.

Tensors before the layers have the first value, tensors after them the last; {gradient: [...], outside: 0.5} gives both
another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from merge.errors import UsageError, brief
from merge.methods.checks import is_finite_number

# Positions of tensors before the first layer and after the last, which are at 0 and 1.
BEFORE, AFTER = -1.0, 2.0


def is_gradient(value: Any) -> bool:
    """Tell whether a setting is written as a gradient.

    Raises:
        UsageError: it is a mapping, but not {gradient: [numbers]}, optionally with outside: number.
    """
    if not isinstance(value, Mapping):
        return False
    points = value.get("gradient")
    numbers = isinstance(points, list | tuple) and all(map(is_finite_number, points))
    keys = set(value) - ({"outside"} if is_finite_number(value.get("outside")) else set())
    if keys != {"gradient"} or not numbers or not points:
        raise UsageError(
            f"a gradient is written {{gradient: [first, ..., last]}} with finite numbers; found {brief(repr(value), 120)}."
        )
    return True


def value_at(value: Any, position: float) -> Any:
    """Return a setting at a position from 0 (the first layer) to 1 (the last), by linear interpolation of its gradient.

    The points of a gradient are equally spaced. BEFORE and AFTER are the positions of tensors outside the layers. Lists are
    evaluated item by item; other values are returned as they are.
    """
    if isinstance(value, list | tuple):
        return type(value)(value_at(item, position) for item in value)
    if not is_gradient(value):
        return value
    points = value["gradient"]
    if position in (BEFORE, AFTER):
        return value.get("outside", points[0 if position == BEFORE else -1])
    index = position * (len(points) - 1)
    below = min(int(index), max(len(points) - 2, 0))
    above = min(below + 1, len(points) - 1)
    share = index - below
    return (1 - share) * points[below] + share * points[above]


def positions(values: Any) -> set[float]:
    """Return the positions of all points of all gradients in these settings; extreme values occur only there."""
    gradients = list(_gradients(values))
    inside = {i / max(len(g["gradient"]) - 1, 1) for g in gradients for i in range(len(g["gradient"]))}
    return {0.0} | inside | ({BEFORE} if any("outside" in g for g in gradients) else set())


def _gradients(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _gradients(item)
    elif isinstance(value, Mapping) and "gradient" not in value:
        for item in value.values():
            yield from _gradients(item)
    elif is_gradient(value):
        yield value
