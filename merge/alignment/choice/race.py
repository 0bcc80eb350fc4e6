"""A race of candidates on a text, part by part, where models are large: the ones that cannot win leave it early.

After each part the candidates leave whose midpoint is clearly behind the best (`clearly_behind`), then those whose mean score
along the line is. It ends when one is left, all of the text is read, or the candidates have been run often enough; then the
best of those that are left is kept, by their scores on what was read. A short text is one part: no candidate leaves, but sets
of axes do, after the first matcher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from merge.alignment.choice.candidates import NEAR_LOWEST, ROUNDING, Candidate, clearly_behind
from merge.alignment.choice.text_part import TextPart, count_texts, join_outputs, outputs_on, parts_for_race
from merge.alignment.divergence import Divergence
from merge.alignment.midpoint import ALONG, EndpointOutputs, divergences
from merge.alignment.pair import Outputs, Pair

MIDDLE = 0.5
# As many runs of a model over the whole text are the most that candidates are given.
MAX_RUNS = 4.0


class Race:
    """The scores of candidates on the parts of a pair's text, each measured once.

    Attributes:
        ends: the outputs of the endpoints.
        runs: of candidates over the text so far, in whole texts.
        kind: which score it is, a key of `midpoint.SCORES`.
    """

    def __init__(self, pair: Pair, outputs: Outputs | None) -> None:
        """Args:
        pair: with masked words, and parts of its text.
        outputs: of the endpoints on the whole text, where the models have been run.
        """
        self.pair, self.ends, self.runs, self.kind = pair, EndpointOutputs(pair, outputs), 0.0, "kl"
        self.parts = parts_for_race(pair)
        self._parts_ends: list[EndpointOutputs] = []
        # Identity of an alignment, number of a part, lam -> the alignment, which so stays alive, and its divergence.
        self._measured: dict[tuple[int, int, float], tuple[object, Divergence]] = {}

    def share(self, number: int) -> float:
        """Return the share of a part in the texts."""
        return count_texts(self.parts[number].pair) / count_texts(self.pair)

    def measure(
        self, candidates: Sequence[Candidate], pair: Pair, number: int, lam: float = MIDDLE
    ) -> list[Divergence]:
        """Return the divergences of candidates on a part.

        Args:
            pair: that they align: the race's, or one with the same functions and text.
        """
        while len(self._parts_ends) <= number:
            self._parts_ends.append(outputs_on(self.parts[len(self._parts_ends)], self.ends))
        new = [c.alignment for c in candidates if (id(c.alignment), number, lam) not in self._measured]
        if new:
            part: TextPart = self.parts[number]
            on_part = replace(pair, batches=part.pair.batches, text=part.pair.text)
            measured, self.kind = divergences(new, on_part, self._parts_ends[number], lam)
            self.runs += len(new) * self.share(number)
            self._measured |= {
                (id(move), number, lam): (move, value) for move, value in zip(new, measured, strict=True)
            }
        return [self._measured[id(c.alignment), number, lam][1] for c in candidates]

    def ahead(self, candidates: Sequence[Candidate], pair: Pair) -> list[bool]:
        """Return for each candidate whether the first part leaves open that it is near the lowest score.

        Of a text that is one part, the scores decide as they are: it is all there is, and chance must not make the choice
        costlier than on a longer text, where what is far off is surely so.
        """
        values = self.measure(candidates, pair, 0)
        lowest = min(values, key=lambda value: value.mean)
        if len(self.parts) == 1:
            return [value.mean <= NEAR_LOWEST * lowest.mean + ROUNDING for value in values]
        return [not clearly_behind(value, lowest) for value in values]

    def finish(self) -> None:
        """Let the notes and whoever reads the endpoints' outputs have those of the parts."""
        join_outputs(self.ends, self.parts, self._parts_ends)


def run_race(
    groups: Sequence[tuple[Sequence[Candidate], Pair]], race: Race
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """Return the candidates of all groups with their scores, those that are left with the mean along the line, and notes.

    Args:
        groups: candidates, and the pair that they align.
    """
    left = [[*range(len(group))] for group, _ in groups]
    middle: dict[tuple[int, int], Divergence] = {}
    line: dict[tuple[int, int], Divergence] = {}
    texts, read, narrowed = count_texts(race.pair), 0, 0

    def add(
        number: int, lams: Sequence[float], sums: dict[tuple[int, int], Divergence], added: Sequence[Sequence[int]]
    ) -> None:
        for g, (group, pair) in enumerate(groups):
            some = [group[k] for k in added[g]]
            each = [race.measure(some, pair, number, lam) for lam in lams] if some else []
            for k, *values in zip(added[g], *each, strict=bool(some)):
                new = mean_of(values)
                sums[g, k] = sums[g, k] + new if (g, k) in sums else new

    def drop(sums: dict[tuple[int, int], Divergence], near: float) -> None:
        entries = [(g, k) for g, some in enumerate(left) for k in some]
        lowest = min((sums[entry] for entry in entries), key=lambda value: value.mean)
        for g, some in enumerate(left):
            left[g] = [k for k in some if not clearly_behind(sums[g, k], lowest, near)]

    for number, part in enumerate(race.parts):
        before = sum(map(len, left))
        read += count_texts(part.pair)
        add(number, [MIDDLE], middle, left)
        if read < texts:
            drop(middle, NEAR_LOWEST)
        # Of all of the text, only those near the lowest score are scored along the line.
        on_line = left if read < texts else _near_lowest(left, middle)
        if sum(map(len, on_line)) > 1:
            add(number, ALONG, line, on_line)
            if read < texts:
                drop(line, 1.0)
        count = sum(map(len, left))
        narrowed = read if count < before else narrowed
        if count == 1 or read == texts:
            break
        if race.runs + len(ALONG) * count * race.share(number + 1) > MAX_RUNS:
            break
    race.finish()
    near = {(g, k) for g, some in enumerate(_near_lowest(left, middle)) for k in some if (g, k) in line}
    scored = tuple(
        replace(c, score=middle[g, k].mean, line=line[g, k].mean if (g, k) in near else None)
        for g, (group, _) in enumerate(groups)
        for k, c in enumerate(group)
    )
    note = [_note(narrowed, read, texts, sum(map(len, left)))] if len(race.parts) > 1 else []
    return scored, (*note, *race.ends.notes(texts))


def _near_lowest(left: list[list[int]], middle: Mapping[tuple[int, int], Divergence]) -> list[list[int]]:
    """Return those of the candidates that are left whose midpoint is near the lowest of all; all of them where none is."""
    limit = NEAR_LOWEST * min(value.mean for value in middle.values()) + ROUNDING
    near = [[k for k in some if middle[g, k].mean <= limit] for g, some in enumerate(left)]
    return near if any(near) else left


def _note(narrowed: int, read: int, texts: int, left: int) -> str:
    note = f"which axes move was chosen on {narrowed or read} of {texts} texts"
    if narrowed and read > narrowed and left > 1:
        note += f", and among {left} candidates on {'all' if read == texts else read}"
    return note


def mean_of(values: Sequence[Divergence]) -> Divergence:
    """Return the mean of divergences of the same rows."""
    by_text = [value.by_text for value in values]
    known = [each for each in by_text if each is not None]
    mean = sum(known[1:], known[0]) / len(known) if len(known) == len(values) else None
    return Divergence(mean, fmean(value.total for value in values), values[0].rows)
