"""Choose between candidate alignments without labels: by how near interpolated models are to the endpoints' ensemble.

Each candidate is scored on calibration text by the mean KL divergence from the ensemble of the two endpoints to their
midpoint, `merge.alignment.midpoint`. Candidates near the lowest score are scored at a quarter and at three quarters of the
line too, where a barrier may be as well: among them the mean over the three decides. Moving nothing is always a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from merge.alignment.choice.common_start import CommonStart
from merge.alignment.choice.text_part import count_texts, part_of_text
from merge.alignment.masking import with_masked_words
from merge.alignment.midpoint import ALONG, SCORES, EndpointOutputs, score
from merge.alignment.pair import Alignment, Matcher, Pair, head_kinds, streams
from merge.symmetry.permutation import identity

# How many times the lowest midpoint score is near it.
NEAR_LOWEST = 1.5
# How many times the lowest score on a part of the text is too far from it to be the lowest on all of it.
FAR_FROM_LOWEST = 2 * NEAR_LOWEST
# Scores that differ by less are equal but for the rounding of float32 models. Of equal ones the first is kept: it moves least.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Candidate:
    """One alignment over some kinds of axes, how it was matched, and its score.

    Attributes:
        score: the mean divergence of the midpoint; None where it was not scored.
        by, basis: the matcher, and what it moved inside heads; None where nothing was matched, or no basis was asked for.
        rotated: whether the residual stream is rotated, of models whose norms are folded.
        line: the mean of the scores at ALONG; None unless several candidates are near the lowest score.
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
    """The scored candidates, and the one that is kept.

    Attributes:
        score: the name of the score; None where nothing was scored.
        notes: sentences for the user.
        start: how near both models are to one start, where that was measured.
    """

    candidates: tuple[Candidate, ...]
    kept: Candidate
    score: str | None
    notes: tuple[str, ...] = ()
    start: CommonStart | None = None

    @property
    def common(self) -> bool:
        """Whether nothing moves because both models were trained from one start."""
        return self.start is not None and self.start.common

    def table(self) -> list[tuple[str, ...]]:
        """Return the scores as rows of text, a header first; columns that are the same for all candidates are left out."""
        rows = [("axes that move", "matched by", "inside heads", self.score or "", "along the line")]
        for c in self.candidates:
            line = "" if c.line is None else f"{c.line:.4f}"
            rows.append((c.name, c.by or "", c.basis or "", f"{c.score:.4f}", line))
        varying = [
            k for k, column in enumerate(zip(*rows[1:], strict=True)) if k in (0, 3) or len({*column} - {""}) > 1
        ]
        return [tuple(row[k] for k in varying) for row in rows]


def fixed(alignment: Alignment, by: str) -> Choice:
    """Return the choice of the only candidate, which is not scored."""
    only = Candidate(alignment, None, by)
    return Choice((only,), only, None)


def unmoved(pair: Pair) -> Candidate:
    """Return the candidate that moves nothing."""
    return Candidate(Alignment(identity(pair.spec, pair.shapes), (), ()), None)


def choose(pair: Pair, matchers: Mapping[str, Matcher], axes: frozenset[str] | None) -> Choice:
    """Return the best alignment over the kinds `axes` by any of the matchers; when axes is None, over the best kinds.

    Without text nothing can be scored: all kinds move, by the first matcher. A single alignment is not scored either.
    """
    all_kinds = frozenset(pair.kinds())
    first = next(iter(matchers))
    if not pair.batches or (axes is not None and len(matchers) == 1):
        return fixed(matchers[first](all_kinds if axes is None else axes), first)
    sets = sets_of_kinds(pair) if axes is None else (axes,)
    matched = [Candidate(matcher(kinds), None, by) for by, matcher in matchers.items() for kinds in sets]
    pair = with_masked_words(pair)
    ends = EndpointOutputs(pair)
    scored, kind, notes = scores([unmoved(pair), *matched], pair, ends, alone=True)
    scored = with_line_scores([(scored, pair)], ends)
    return Choice(scored, best(scored), SCORES[kind], notes)


def sets_of_kinds(pair: Pair) -> tuple[frozenset[str], ...]:
    """Return the sets of kinds of axes that candidates move, from the smallest to all kinds.

    Those that only the task head reads (the pooler, whose basis fine-tunes of one start may change while all layers keep
    theirs); these with attention heads and feed-forward units; all.
    """
    all_kinds = frozenset(pair.kinds())
    sets = (head_kinds(all_kinds), all_kinds - streams(all_kinds), all_kinds)
    return tuple(kinds for kinds in dict.fromkeys(sets) if kinds)


def scores(
    candidates: Sequence[Candidate], pair: Pair, ends: EndpointOutputs, alone: bool = False
) -> tuple[tuple[Candidate, ...], str, tuple[str, ...]]:
    """Return the candidates with the scores of their midpoints, which score it is (a key of SCORES), and notes on the text.

    Where a model and the text are large, all are scored on a part of the text, and those far from the lowest score are scored
    on no more of it.

    Args:
        alone: there are no other candidates: the only one that is left need not be scored on the whole text.
    """
    part, texts = part_of_text(pair), count_texts(pair)
    if part is None:
        values, kind = score([c.alignment for c in candidates], pair, ends)
        scored = [replace(c, score=value) for c, value in zip(candidates, values, strict=True)]
        return tuple(scored), kind, ends.notes(texts)
    part_ends = EndpointOutputs(part)
    values, kind = score([c.alignment for c in candidates], part, part_ends)
    scored = [replace(c, score=value) for c, value in zip(candidates, values, strict=True)]
    read = f"which axes move was chosen on {count_texts(part)} of {texts} texts"
    limit = FAR_FROM_LOWEST * min(values) + ROUNDING
    near = [k for k, value in enumerate(values) if value <= limit]
    if alone and len(near) == 1:
        return tuple(scored), kind, (read, *part_ends.notes(texts))
    whole, _ = score([candidates[k].alignment for k in near], pair, ends)
    scored = [replace(c, score=whole[near.index(k)]) if k in near else c for k, c in enumerate(scored)]
    return tuple(scored), kind, (f"{read}, and among {len(near)} candidates on all", *ends.notes(texts))


def with_line_scores(
    groups: Sequence[tuple[Sequence[Candidate], Pair]], ends: EndpointOutputs
) -> tuple[Candidate, ...]:
    """Return the candidates, those near the lowest score with the mean score along the line, if there are several.

    Args:
        groups: candidates with the scores of their midpoints, and the pair that they align.
    """
    limit = NEAR_LOWEST * min(c.score for group, _ in groups for c in group if c.score is not None) + ROUNDING
    near = [[c for c in group if c.score is not None and c.score <= limit] for group, _ in groups]
    lines: dict[int, float] = {}
    if sum(map(len, near)) > 1:
        for group, (_, pair) in zip(near, groups, strict=True):
            moves = [c.alignment for c in group]
            each = [
                [c.score or 0.0 for c in group] if lam == 0.5 else score(moves, pair, ends, lam)[0] for lam in ALONG
            ]
            lines |= {id(c): fmean(values) for c, *values in zip(group, *each, strict=True)}
    return tuple(replace(c, line=lines.get(id(c))) for group, _ in groups for c in group)


def best(candidates: Sequence[Candidate]) -> Candidate:
    """Return the first candidate with the lowest score: along the line, where that was measured."""
    deciding = [c.line for c in candidates]
    if all(value is None for value in deciding):
        deciding = [c.score for c in candidates]
    least = min(value for value in deciding if value is not None)
    pairs = zip(candidates, deciding, strict=True)
    return next(c for c, value in pairs if value is not None and value <= least + ROUNDING)
