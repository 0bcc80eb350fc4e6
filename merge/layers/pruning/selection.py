"""The units to remove: listed by the user, or those with the lowest scores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from merge.disk.documents import parse_json, read_text
from merge.errors import UsageError, brief
from merge.layers.plans.numbers import format_layers

if TYPE_CHECKING:
    from torch import Tensor

    from merge.layers.pruning.units import UnitLayer

Removal = Mapping[int, tuple[int, ...]]  # layer -> its units, ascending
_ENTRY = re.compile(r"(\d{1,6})\s*:\s*(\d[\d\s,-]*)", re.ASCII)
_RANGE = re.compile(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?", re.ASCII)


def parse_units(texts: Sequence[str], what: str) -> dict[int, tuple[int, ...]]:
    """Return layer -> units of entries such as "0:1,3" or "2:0-4"; a text may hold several, separated by spaces.

    Args:
        what: heads or neurons, for messages.
    Raises:
        UsageError: an entry has another form, or names a unit twice.
    """
    listed: dict[int, list[int]] = {}
    for entry in (part for text in texts for part in text.split()):
        match = _ENTRY.fullmatch(entry)
        parts = [_RANGE.fullmatch(part.strip()) for part in match[2].split(",")] if match else [None]
        if match is None or None in parts:
            raise UsageError(f"{what} are given as layer:{what}, such as 0:1,3 or 2:0-4; found {brief(entry)!r}.")
        for part in parts:
            assert part is not None
            first, last = int(part[1]), int(part[2] or part[1])
            if last < first:
                raise UsageError(
                    f"the range {part[0]} of {brief(entry)!r} is descending. Put the smaller number first."
                )
            listed.setdefault(int(match[1]), []).extend(range(first, last + 1))
    for layer, units in listed.items():
        if repeated := sorted({unit for unit in units if units.count(unit) > 1}):
            raise UsageError(f"{what}: {layer}:{repeated[0]} is listed twice. List it once.")
    return {layer: tuple(sorted(units)) for layer, units in sorted(listed.items())}


def read_units(path: Path, what: str) -> dict[int, tuple[int, ...]]:
    """Return layer -> units of a file: lines of entries as `parse_units` reads them, or JSON {"0": [1, 3]}.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    text = read_text(path, UsageError, str(path))
    if not text.lstrip().startswith("{"):
        return parse_units([line for line in text.splitlines() if not line.startswith("#")], f"{path}: {what}")
    stored = parse_json(text, str(path), UsageError)
    if not all(key.isdecimal() and _is_list_of_numbers(units) for key, units in stored.items()):
        raise UsageError(f'{path}: expected a list of {what} for each layer, such as {{"0": [1, 3]}}.')
    return parse_units([f"{key}:{','.join(map(str, units))}" for key, units in stored.items() if units], str(path))


def _is_list_of_numbers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)


def format_units(removal: Removal) -> str:
    """Return units as text that `parse_units` reads back."""
    return " ".join(f"{layer}:{format_layers(units)}" for layer, units in removal.items() if units)


def check_removal(layers: Sequence[UnitLayer], removal: Removal, what: str) -> None:
    """Stop where a layer or a unit does not exist, nothing is removed, or a layer would have none left.

    Raises:
        UsageError: one of these.
    """
    if not any(removal.values()):
        raise UsageError(f"no {what} to remove were given. Example: --{what} 0:1,3")
    counts = {layer.number: layer.count for layer in layers}
    for number, units in removal.items():
        if number not in counts:
            raise UsageError(
                f"{what}: there is no layer {number}; the model has {len(counts)}, {min(counts)} to {max(counts)}."
                if len(counts) == max(counts) + 1
                else f"{what}: nothing is known of those of layer {number}; known are those of {format_layers(sorted(counts))}."
            )
        if beyond := [unit for unit in units if not 0 <= unit < counts[number]]:
            raise UsageError(
                f"{what}: layer {number} has no {what[:-1]} {beyond[0]}; it has {counts[number]}, 0 to {counts[number] - 1}."
            )
        if len(set(units)) < len(units):
            raise UsageError(f"{what}: layer {number} lists one twice. List it once.")
        if len(units) == counts[number]:
            raise UsageError(
                f"layer {number} would have zero {what} left. Keep at least one, or drop the layer with edit-layers drop."
            )


def lowest(
    layers: Sequence[UnitLayer],
    scores: Mapping[int, Tensor],
    what: str,
    count: int | None = None,
    share: float | None = None,
    per_layer: bool = False,
    protected: Sequence[int] = (),
) -> dict[int, tuple[int, ...]]:
    """Return the units with the lowest scores; every layer keeps one at least. Of equal scores the first unit goes.

    Args:
        count, share: how many, or which share of the units of all layers that are not protected; one of both.
        per_layer: count or share is of each layer, not of all together.
        protected: layers that keep all their units.
    Raises:
        UsageError: so many cannot be removed, or a score is not a number.
    """
    numbers = {layer.number for layer in layers}
    if unknown := [layer for layer in protected if layer not in numbers]:
        raise UsageError(f"--protect: there is no layer {unknown[0]}; the model has {len(numbers)}.")
    free = [layer for layer in layers if layer.number not in protected]
    if any(bool((scores[layer.number] != scores[layer.number]).any()) for layer in free):
        raise UsageError(f"the score of a {what[:-1]} is not a number (NaN), so {what} cannot be ranked.")
    parts = [[layer] for layer in free] if per_layer else [free]
    removed: dict[int, list[int]] = {}
    for part in parts:
        total, most = sum(layer.count for layer in part), sum(layer.count - 1 for layer in part)
        wanted = round(total * share) if share is not None else int(count or 0)
        if not 0 < wanted <= most:
            raise UsageError(
                f"cannot remove {wanted} of {total} {what}{' of a layer' if per_layer else ''}: expected 1 to {most}, as "
                "each layer keeps one."
            )
        ranked = sorted((float(s), layer.number, k) for layer in part for k, s in enumerate(scores[layer.number]))
        left = {layer.number: layer.count for layer in part}
        for _, number, unit in ranked:
            if wanted and left[number] > 1:
                removed.setdefault(number, []).append(unit)
                wanted, left[number] = wanted - 1, left[number] - 1
    return {number: tuple(sorted(units)) for number, units in sorted(removed.items())}
