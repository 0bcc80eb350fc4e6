"""Finding the permutation that lines model B up with model A; ALIGNERS lists the ways to match."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from merge.errors import UsageError, nearest

if TYPE_CHECKING:
    from merge.alignment.pair import Matcher, Pair

# Name -> module and function, imported when used: they need torch, and --help does not.
ALIGNERS: dict[str, tuple[str, str]] = {
    "activations": ("merge.alignment.activations", "match_activations"),
    "weights": ("merge.alignment.weights", "match_weights"),
}


def aligner(name: str) -> Callable[[Pair], Matcher]:
    """Return the aligner of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in ALIGNERS:
        raise UsageError(f"unknown alignment {name!r}.{nearest(name, ['none', *ALIGNERS])}")
    module, function = ALIGNERS[name]
    found: Callable[[Pair], Matcher] = getattr(import_module(module), function)
    return found
