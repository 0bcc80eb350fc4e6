"""Which axes move is chosen without labels: the candidate whose line of models is nearest to what the endpoints say together.

Each candidate alignment is scored on calibration text by the mean KL divergence from the ensemble of the two endpoints to
the model half way between them, `merge.alignment.midpoint`. Those whose score is within reach of the lowest are scored at a
quarter and at three quarters of the way too, where a barrier may stand as well: of them the mean over the three decides.
Moving nothing is always a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from merge.alignment.choice.common_start import CommonStart
from merge.alignment.masking import with_masked_words
from merge.alignment.midpoint import SCORES, EndpointOutputs, score
from merge.alignment.pair import Alignment, Matcher, Pair, head_kinds, streams
from merge.symmetry.permutation import identity

# How much of b is in the models that are scored, and how many times the lowest score half way is within reach of it.
ALONG, REACH = (0.25, 0.5, 0.75), 1.5


# Scores that differ by less are the same: rounding of float32 models. The first of them is kept, which moves least.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Candidate:
    """One alignment over some kinds of axes, how it was found, and how far its midpoint is from the ensemble.

    Attributes:
        by, basis: the matcher, and what it moved inside heads; None where nothing was matched or nothing was asked.
        rotated: of models whose norms are folded, the residual stream turned.
        line: the mean of the scores at ALONG, where more than one candidate is within reach of the lowest score.
    """

    alignment: Alignment
    score: float | None
    by: str | None = None
    basis: str | None = None
    rotated: bool = False
    line: float | None = None

    @property
    def name(self) -> str:
        kinds = self.alignment.kinds
        return (
            ", ".join(f"rotated {kind}" if self.rotated and kind in streams(kinds) else kind for kind in kinds)
            or "nothing"
        )


@dataclass(frozen=True)
class Choice:
    """The candidates as scored, and the one that is kept.

    Attributes:
        score: what was measured, None if nothing was.
        notes: what is to be said of the choice.
        start: whether both models come of one start, where that was looked at.
    """

    candidates: tuple[Candidate, ...]
    kept: Candidate
    score: str | None
    notes: tuple[str, ...] = ()
    start: CommonStart | None = None

    @property
    def common(self) -> bool:
        """Whether nothing moves because both models come of one start."""
        return self.start is not None and self.start.common

    def table(self) -> list[tuple[str, ...]]:
        """Return what was measured as rows of text, a header first; what is the same for all candidates is left out."""
        rows = [("axes that move", "matched by", "inside heads", self.score or "", "along the line")]
        for c in self.candidates:
            line = "" if c.line is None else f"{c.line:.4f}"
            rows.append((c.name, c.by or "", c.basis or "", f"{c.score:.4f}", line))
        told = [k for k, column in enumerate(zip(*rows[1:], strict=True)) if k in (0, 3) or len({*column} - {""}) > 1]
        return [tuple(row[k] for k in told) for row in rows]


def fixed(alignment: Alignment, by: str) -> Choice:
    """Return the choice that is none: one alignment, not scored."""
    only = Candidate(alignment, None, by)
    return Choice((only,), only, None)


def nothing(pair: Pair) -> Candidate:
    """Return the candidate that moves nothing."""
    return Candidate(Alignment(identity(pair.spec, pair.shapes), (), ()), None)


def choose(pair: Pair, matchers: Mapping[str, Matcher], axes: frozenset[str] | None) -> Choice:
    """Return the best alignment over `axes` by any of the matchers; when axes is None, over the best choice of them.

    Without batches nothing can be scored: all axes move, by the first matcher. Nor is a single alignment scored.
    """
    everything = frozenset(pair.kinds())
    first = next(iter(matchers))
    if not pair.batches or (axes is not None and len(matchers) == 1):
        return fixed(matchers[first](everything if axes is None else axes), first)
    wanted = sets_of_axes(pair) if axes is None else (axes,)
    found = [Candidate(matcher(kinds), None, by) for by, matcher in matchers.items() for kinds in wanted]
    pair = with_masked_words(pair)
    ends = EndpointOutputs(pair)
    scored, kind = scores([nothing(pair), *found], pair, ends)
    scored = settled([(scored, pair)], ends)
    return Choice(scored, best(scored), SCORES[kind], ends.notes())


def sets_of_axes(pair: Pair) -> tuple[frozenset[str], ...]:
    """Return the kinds of axes that candidates move, from little to much.

    What only the task head reads (the pooler, which fine-tunes of one start take apart while everything below stays in
    one basis); that with heads and feed-forward units; everything.
    """
    everything = frozenset(pair.kinds())
    outside = everything - streams(everything)
    wanted = (head_kinds(everything), outside, everything)
    return tuple(kinds for kinds in dict.fromkeys(wanted) if kinds)


def scores(candidates: Sequence[Candidate], pair: Pair, ends: EndpointOutputs) -> tuple[tuple[Candidate, ...], str]:
    """Return the candidates with their scores half way, and which score it is (a key of SCORES)."""
    values, kind = score([candidate.alignment for candidate in candidates], pair, ends)
    return tuple(replace(c, score=value) for c, value in zip(candidates, values, strict=True)), kind


def settled(groups: Sequence[tuple[Sequence[Candidate], Pair]], ends: EndpointOutputs) -> tuple[Candidate, ...]:
    """Return candidates with the scores that decide: along the line, of those within reach of the lowest half way.

    Args:
        groups: candidates scored half way, with the pair that they are of.
    """
    limit = REACH * min(c.score for found, _ in groups for c in found if c.score is not None) + ROUNDING
    near = [[c for c in found if c.score is not None and c.score <= limit] for found, _ in groups]
    lines: dict[int, float] = {}
    if sum(map(len, near)) > 1:
        for some, (_, pair) in zip(near, groups, strict=True):
            moves = [c.alignment for c in some]
            each = [[c.score or 0.0 for c in some] if lam == 0.5 else score(moves, pair, ends, lam)[0] for lam in ALONG]
            lines |= {id(c): fmean(values) for c, *values in zip(some, *each, strict=True)}
    return tuple(replace(c, line=lines.get(id(c))) for found, _ in groups for c in found)


def best(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the lowest score, along the line where some have one; of those that tie, the first."""
    deciding = [c.line for c in candidates]
    if all(value is None for value in deciding):
        deciding = [c.score for c in candidates]
    least = min(value for value in deciding if value is not None)
    pairs = zip(candidates, deciding, strict=True)
    return next(c for c, value in pairs if value is not None and value <= least + ROUNDING)
