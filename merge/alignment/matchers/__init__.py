"""Matchers, one a file; ALIGNERS lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from merge.errors import UsageError, nearest

if TYPE_CHECKING:
    from merge.alignment.pair import Alignment, Matcher, Pair

# Name -> module and function, imported when used: they need torch, and --help does not.
ALIGNERS: dict[str, tuple[str, str]] = {
    "activations": ("merge.alignment.matchers.activations", "match_activations"),
    "activations+weights": ("merge.alignment.matchers.refined", "match_refined"),
    "annealing": ("merge.alignment.matchers.annealing", "match_annealing"),
    "circuits": ("merge.alignment.matchers.weights", "match_by_circuits"),
    "frank-wolfe": ("merge.alignment.matchers.frank_wolfe", "match_frank_wolfe"),
    "learned": ("merge.alignment.matchers.learned", "match_learned"),
    "sinkhorn": ("merge.alignment.matchers.sinkhorn", "match_sinkhorn"),
    "transport": ("merge.alignment.matchers.transport", "match_transport"),
    "weights": ("merge.alignment.matchers.weights", "match_weights"),
}

# Those that match many models at once.
MANY: dict[str, tuple[str, str]] = {"universe": ("merge.alignment.matchers.universe", "match_universe")}

# What an alignment can be asked to go by.
BY = ("auto", *ALIGNERS, *MANY)

# Those that read text.
NEED_TEXT = frozenset({"activations", "activations+weights", "annealing", "learned"})

# Those that find maps as well: bases inside heads, rotations of the residual stream.
FIND_MAPS = frozenset({"activations", "activations+weights", "learned", "weights"})

# Option -> those that read it; to the others it would say nothing.
READERS = {
    "restarts": tuple(by for by in BY if by not in ("activations", "transport")),
    "steps": ("learned", "sinkhorn", "annealing"),
    "both": ("learned",),
}

# Those that compare models as they are merged, not their canonical forms.
AS_MERGED = frozenset({"annealing", "learned"})


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


def many_aligner(name: str) -> Callable[[Sequence[Pair], frozenset[str]], list[Alignment]]:
    """Return the aligner of many models of that name: from their pairs with the reference to an alignment for each."""
    module, function = MANY[name]
    found: Callable[[Sequence[Pair], frozenset[str]], list[Alignment]] = getattr(import_module(module), function)
    return found
