"""Matchers, one a file, and the table of aligners that lists them.

A new aligner is a file with its function and a record here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from merge.errors import UsageError, nearest

if TYPE_CHECKING:
    from merge.alignment.pair import Alignment, Matcher, Pair


@dataclass(frozen=True)
class Aligner:
    """A way to align models. Its functions are imported when it is called: they need torch, and `--help` does not.

    Attributes:
        name: its value of `by` in a recipe.
        function: `module:function` in this package; from a pair to its matcher.
        with_maps: the function for pairs that ask for maps as well (bases inside heads, rotations of the residual stream);
            None where it finds permutations only.
        joint: `module:function` that aligns many models at once, instead of `function`.
        reads_text: whether it needs calibration text.
        compares_merged: whether it compares the weights that are merged, not their canonical forms.
        runs_models: whether, without maps, it compares what the models compute, which is that of both forms.
        options: the fields of a recipe's align entry that it reads, of OPTIONS.
    """

    name: str
    function: str | None = None
    with_maps: str | None = None
    joint: str | None = None
    reads_text: bool = False
    compares_merged: bool = False
    runs_models: bool = False
    options: tuple[str, ...] = ("restarts",)

    def __call__(self, pair: Pair) -> Matcher:
        """Return the matcher of a pair; with maps where the pair asks for them and this aligner finds them.

        Raises:
            UsageError: the aligner takes many models at once.
            AlignmentError: it needs calibration text, and the pair has none.
        """
        from merge.alignment.solvers.descent_with_maps import wants_maps

        if self.function is None:
            raise UsageError(f"{self.name} aligns many models at once, not one pair.")
        function = self.with_maps if self.with_maps is not None and wants_maps(pair) else self.function
        matcher: Matcher = _load(function)(pair)
        return matcher

    def compared(self, pair: Pair) -> Pair:
        """Return the pair in the form in which its models are compared: the canonical one, where that makes a difference."""
        from merge.alignment.pair import in_canonical_form
        from merge.alignment.solvers.descent_with_maps import wants_maps

        plain = self.compares_merged or (self.runs_models and not wants_maps(pair))
        return pair if plain else in_canonical_form(pair)

    def align_jointly(self, pairs: Sequence[Pair], kinds: frozenset[str]) -> list[Alignment]:
        """Return, for the b of each pair, the alignment to the reference, which is the a of each; all found together."""
        if self.joint is None:
            raise UsageError(f"{self.name} aligns one pair at a time, not many models at once.")
        alignments: list[Alignment] = _load(self.joint)(pairs, kinds)
        return alignments


def _load(path: str) -> Callable[..., Any]:
    module, function = path.split(":")
    loaded: Callable[..., Any] = getattr(import_module(f"{__name__}.{module}"), function)
    return loaded


_TABLE = (
    Aligner(
        "activations",
        "activations:match_activations",
        with_maps="rotations:rotate_by_activations",
        reads_text=True,
        runs_models=True,
        options=(),
    ),
    Aligner("activations+weights", "refined:match_refined", with_maps="rotations:rotate_by_both", reads_text=True),
    Aligner(
        "annealing",
        "annealing:match_annealing",
        reads_text=True,
        compares_merged=True,
        options=("restarts", "steps"),
    ),
    Aligner("circuits", "weights:match_by_circuits"),
    Aligner("frank-wolfe", "frank_wolfe:match_frank_wolfe"),
    Aligner(
        "learned",
        "learned:match_learned",
        with_maps="learned:match_learned",
        reads_text=True,
        compares_merged=True,
        options=("restarts", "steps", "both", "line"),
    ),
    Aligner("sinkhorn", "sinkhorn:match_sinkhorn", options=("restarts", "steps")),
    Aligner("transport", "transport:match_transport", options=()),
    Aligner("weights", "weights:match_weights", with_maps="rotations:rotate_by_weights"),
    Aligner("universe", joint="universe:match_universe"),
)
ALIGNERS: dict[str, Aligner] = {entry.name: entry for entry in _TABLE}

# Those that align one pair at a time.
PAIRWISE = tuple(entry.name for entry in _TABLE if entry.function is not None)

# Values of `by` in a recipe's align entry, besides none. `auto` chooses among several aligners (`merge.alignment.choice.auto`).
BY = ("auto", *ALIGNERS)
AUTO_OPTIONS = ("restarts",)

# Options of an align entry that not every aligner reads.
OPTIONS = ("restarts", "steps", "both", "line")


def aligner(name: str) -> Aligner:
    """Return the aligner of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in ALIGNERS:
        raise UsageError(f"unknown alignment {name!r}.{nearest(name, ['none', *ALIGNERS])}")
    return ALIGNERS[name]


def readers_of(option: str) -> tuple[str, ...]:
    """Return the values of `by` under which an option of OPTIONS has an effect."""
    automatic = ("auto",) if option in AUTO_OPTIONS else ()
    return (*automatic, *(entry.name for entry in _TABLE if option in entry.options))


def finders_of_maps() -> tuple[str, ...]:
    """Return the values of `by` that find maps as well as permutations."""
    return ("auto", *(entry.name for entry in _TABLE if entry.with_maps is not None))
