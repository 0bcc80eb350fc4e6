"""Checks of method settings: numbers in a range, flags, choices, weights, values per model.

By hand instead of pydantic: its import and 28 validators would more than double the start-up time of --help.
"""

from __future__ import annotations

import math
from typing import Any

from merge.errors import UsageError, brief

# Of a number in settings: sums and products of a few stay finite, and no whole number is too long for a float.
LARGEST = 1e300


def is_finite_number(value: Any) -> bool:
    """Return whether a value is a number, and neither NaN nor infinite nor beyond LARGEST."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def check_number(
    method: str, key: str, value: Any, low: float = -math.inf, high: float = math.inf, above: bool = False
) -> None:
    """Stop unless `value` is a finite number from `low` to `high`; with `above`, `low` itself is excluded."""
    if not is_finite_number(value) or not low <= value <= high or (above and value == low):
        raise UsageError(f"{method}: {key} must be {_range(low, high, above)}, found {brief(repr(value))}.")


def _range(low: float, high: float, above: bool) -> str:
    if math.isinf(low) and math.isinf(high):
        return "a finite number"
    start = f"{'above' if above else 'from'} {low:g}"
    if math.isinf(high):
        return f"a number {start}" if above else f"a number of at least {low:g}"
    return f"a number {start} to {high:g}"


def check_flag(method: str, key: str, value: Any) -> None:
    """Stop unless `value` is true or false."""
    if not isinstance(value, bool):
        raise UsageError(f"{method}: {key} must be true or false, found {value!r}.")


def check_choice(method: str, key: str, value: Any, choices: tuple[str, ...]) -> None:
    """Stop unless `value` is one of `choices`."""
    if value not in choices:
        raise UsageError(f"{method}: {key} must be {' or '.join(choices)}, found {value!r}.")


def check_weights(method: str, weights: Any, normalize: bool, can_turn_off: bool = False) -> None:
    """Stop unless `weights` is None or a tuple of finite numbers, with a sum other than 0 if they are normalised.

    Args:
        can_turn_off: whether the method has a setting `normalize`.
    """
    if weights is None:
        return
    if not isinstance(weights, tuple):
        raise UsageError(f"{method}: weights must be a list, one number per model, found {weights!r}.")
    for weight in weights:
        if not is_finite_number(weight):
            raise UsageError(f"{method}: weights must be finite numbers, found {brief(repr(weight))}.")
    if normalize and abs(math.fsum(weights)) < 1e-12:
        advice = "Set normalize=false." if can_turn_off else "Give weights whose sum is not 0."
        raise UsageError(f"{method}: weights {list(weights)} sum to 0 and cannot be normalised. {advice}")


def check_each(method: str, key: str, value: Any, low: float, high: float, above: bool = False) -> None:
    """Stop unless `value` is a number in the range, or a tuple of such numbers, one per model."""
    for number in value if isinstance(value, tuple) else (value,):
        check_number(method, key, number, low, high, above)


def check_length(method: str, key: str, value: Any, models: int) -> None:
    """Stop when a setting with several values does not have one per model."""
    if isinstance(value, tuple) and len(value) != models:
        raise UsageError(f"{method}: {len(value)} {key} for {models} models. Give one per model.")


def each(value: float | tuple[float, ...], models: int) -> tuple[float, ...]:
    """Return a setting as one number per model."""
    return value if isinstance(value, tuple) else (value,) * models
