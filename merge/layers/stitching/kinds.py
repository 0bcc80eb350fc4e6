"""Families of maps between the states of two models, and how a stitch is asked for.

A map takes each token's state by itself: a map that reads other tokens would be a layer, and could do the work of the layers
that it joins. Smaller families say more where they suffice.

Source: Bansal, Nakkiran and Barak 2021, arXiv:2106.07682, section 2; Csiszarik et al. 2021, arXiv:2110.14633 (families).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from merge.errors import UsageError, nearest
from merge.text.source import TextSource

# Map -> what it may do to a state x of the bottom model.
MAPS = {
    "identity": "x as it is",
    "scale": "every unit times its own factor, plus a constant",
    "permutation": "the units of x in another order",
    "orthogonal": "x rotated, reflections included, plus a constant",
    "low-rank": "x W + c with W of rank --rank",
    "affine": "x W + c",
    "affine+norm": "x W + c, then the norm that wrote the state which the top reads",
}
UNFITTED = ("identity",)
# Maps that have no numbers which a gradient could change.
UNREFINED = ("identity", "permutation")
REFINEMENTS = ("none", "feature", "kl", "task")
# How the tokens of two models are matched.
TOKENS = ("same", "offsets")
RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)
RATE = 1e-3
MOST_DIGITS = 6


@dataclass(frozen=True)
class StitchSettings:
    """How two models are stitched.

    Attributes:
        at: how many layers of the bottom model are kept, and the first layer of the top model that follows: states of each, as
            state i is what layer i reads.
        kind: one of MAPS.
        text: what the map is fitted on.
        rank: of a low-rank map; an eighth of the units when None.
        ridge: pull of an affine fit towards the best rotation; chosen on held-out text when None.
        refine: none; feature: squared error of the top's state; kl: divergence of the outputs from the top model's; task:
            cross-entropy of the labels of the text.
        steps, rate: of Adam.
        tokens: same, or offsets: matched by the characters that they cover.
        label_column: of the text, for task.
    """

    at: tuple[int, int]
    kind: str = "affine"
    text: TextSource = field(default_factory=TextSource)
    rank: int | None = None
    ridge: float | None = None
    refine: str = "none"
    steps: int = 100
    rate: float = RATE
    tokens: str = "same"
    label_column: str | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind)
        for value, known, what in ((self.refine, REFINEMENTS, "refinement"), (self.tokens, TOKENS, "match of tokens")):
            if value not in known:
                raise UsageError(f"unknown {what} {value!r}.{nearest(value, known)}")
        if min(self.at) < 0:
            raise UsageError(f"a cut is two numbers of layers, such as 3:4; found {self.at[0]}:{self.at[1]}.")
        if self.rank is not None and (self.kind != "low-rank" or self.rank < 1):
            raise UsageError(f"--rank is the rank of --map low-rank, at least 1; found {self.rank} for {self.kind}.")
        if self.ridge is not None and not (0 <= self.ridge < math.inf and self.kind in FITS_OF_RIDGE):
            raise UsageError(f"--ridge is a finite number of at least 0 for --map {', '.join(FITS_OF_RIDGE)}.")
        if self.refine != "none":
            self._check_refinement()
        elif self.label_column is not None:
            raise UsageError("--label-column names the classes that --refine task learns. Leave it out.")

    def _check_refinement(self) -> None:
        if self.kind in UNREFINED:
            raise UsageError(f"--refine {self.refine}: a map of kind {self.kind} has no numbers to refine.")
        if self.steps < 1 or not 0 < self.rate < math.inf:
            raise UsageError(
                f"--refine takes at least 1 step and a rate above 0, found {self.steps} and {self.rate:g}."
            )
        if (self.refine == "task") != (self.label_column is not None):
            raise UsageError("--refine task and --label-column belong together: labels are read from --text.")
        if self.refine == "task" and self.text.source is None:
            raise UsageError("--refine task needs --text with labels; the package's own text has none.")
        if self.tokens != "same" and self.refine != "task":
            raise UsageError(
                f"--refine {self.refine} compares token by token, so both models must read the same tokens."
            )

    @property
    def words(self) -> str:
        return f"{self.at[0]}:{self.at[1]}"


FITS_OF_RIDGE = ("low-rank", "affine", "affine+norm")


def check_kind(kind: str) -> None:
    """Stop at an unknown family of maps.

    Raises:
        UsageError: the nearest is named.
    """
    if kind not in MAPS:
        raise UsageError(f"unknown map {kind!r}.{nearest(kind, MAPS)}")


def parse_cut(text: str) -> tuple[int, int]:
    """Return the two numbers of a cut such as "3:4".

    Raises:
        UsageError: the text has another form.
    """
    match = re.fullmatch(rf"\s*(\d{{1,{MOST_DIGITS}}})\s*:\s*(\d{{1,{MOST_DIGITS}}})\s*", text, re.ASCII)
    if match is None:
        raise UsageError(
            f"--at is two numbers, such as 3:4: the first 3 layers of A, then the layers of B from 4 on; found {text!r}."
        )
    return int(match[1]), int(match[2])


def check_cut(at: tuple[int, int], totals: tuple[int, int], names: tuple[str, str]) -> None:
    """Stop at a cut that a model does not have.

    Args:
        totals: the number of layers of both models.
        names: of the models, for the message.
    Raises:
        UsageError: names the model and its cuts.
    """
    for number, total, name in zip(at, totals, names, strict=True):
        if number > total:
            raise UsageError(
                f"--at {at[0]}:{at[1]}: {name} has {total} layers, so it can be cut at 0 to {total}, not at {number}."
            )
