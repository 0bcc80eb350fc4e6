"""Choose between candidate alignments without labels: by how near interpolated models are to the endpoints' ensemble.

Each candidate is scored on calibration text by the mean KL divergence from the ensemble of the two endpoints to their
midpoint, `merge.alignment.midpoint`. Candidates near the lowest score are scored at a quarter and at three quarters of the
line too, where a barrier may be as well: among them the mean over the three decides. Moving nothing is always a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from merge.alignment.choice.common_start import CommonStart
from merge.alignment.choice.text_part import count_texts, join_outputs, outputs_on, parts_of_text
from merge.alignment.divergence import Divergence
from merge.alignment.masking import with_masked_words
from merge.alignment.midpoint import ALONG, SCORES, EndpointOutputs, divergences, score
from merge.alignment.pair import Alignment, Matcher, Outputs, Pair, head_kinds, streams
from merge.symmetry.permutation import identity

# How many times the lowest midpoint score is near it.
NEAR_LOWEST = 1.5
# How many times the lowest score on a part of the text is too far from it to be the lowest on all of it, where the scores of
# single texts do not show how much of a difference is chance; where they do, so many standard errors are beyond it.
FAR_FROM_LOWEST, SURE = 2 * NEAR_LOWEST, 5.0
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
    ends = EndpointOutputs(pair, known_outputs(matched))
    scored, kind, notes = scores([unmoved(pair), *matched], pair, ends, alone=True)
    scored = with_line_scores([(scored, pair)], ends)
    return Choice(scored, best(scored), SCORES[kind], notes)


def known_outputs(candidates: Sequence[Candidate]) -> Outputs | None:
    """Return the outputs of the endpoints on the text, where a matcher has run them there."""
    measured = (c.alignment.measured for c in candidates)
    return next((each.outputs for each in measured if each is not None and each.outputs is not None), None)


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

    Where a model and the text are large, all are scored on a part of the text, then on more of it: those that are clearly
    behind the best by then are scored on no more.

    Args:
        alone: there are no other candidates: the only one that is left need not be scored on the whole text.
    """
    parts, texts, moves = parts_of_text(pair), count_texts(pair), [c.alignment for c in candidates]
    if not parts:
        values, kind = score(moves, pair, ends)
        return (
            tuple(replace(c, score=value) for c, value in zip(candidates, values, strict=True)),
            kind,
            ends.notes(texts),
        )
    left, read, narrowed = list(range(len(moves))), 0, 0
    so_far: dict[int, Divergence] = {}
    parts_ends = []
    for part in parts:
        parts_ends.append(outputs_on(part, ends))
        measured, kind = divergences([moves[k] for k in left], part.pair, parts_ends[-1])
        for k, new in zip(left, measured, strict=True):
            so_far[k] = so_far[k] + new if k in so_far else new
        read += count_texts(part.pair)
        best = min(left, key=lambda k: so_far[k].mean)
        ahead = [k for k in left if read == texts or not clearly_behind(so_far[k], so_far[best])]
        if len(ahead) < len(left):
            left, narrowed = ahead, read
        if alone and len(left) == 1:
            break
    join_outputs(ends, parts, parts_ends)
    scored = tuple(replace(c, score=so_far[k].mean) for k, c in enumerate(candidates))
    note = f"which axes move was chosen on {narrowed} of {texts} texts"
    if read == texts:
        note += f", and among {len(left)} candidates on all"
    return scored, kind, (*([note] if narrowed else []), *ends.notes(texts))


def clearly_behind(divergence: Divergence, best: Divergence, near: float = NEAR_LOWEST) -> bool:
    """Return whether a candidate's divergence on all of a text would be far from that of the best so far, as a part shows.

    Whether the mean over the texts of the part is above so many times the best's, beyond what chance explains: of midpoints
    candidates that are nearer than NEAR_LOWEST times may be better along the line.
    """
    if divergence.by_text is None or best.by_text is None:
        return divergence.mean > FAR_FROM_LOWEST / NEAR_LOWEST * near * best.mean + ROUNDING
    differences = divergence.by_text - near * best.by_text
    error = float(differences.std()) / math.sqrt(len(differences))
    return float(differences.mean()) > SURE * error + ROUNDING


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
