"""Search for the layers to keep by a score of every candidate: one-shot, greedy, beam, exhaustive."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from merge.errors import MergeError, UsageError

Kept = tuple[int, ...]
Score = Callable[[Kept], float]  # of the model with these layers; larger is better

MOST_CANDIDATES = 5000
BEAM = 4


@dataclass(frozen=True)
class Search:
    """The result of a search.

    Attributes:
        kept: the layers to keep.
        scores: every candidate that was scored, in order, with its score.
    """

    kept: Kept
    scores: tuple[tuple[Kept, float], ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the candidates for a report."""
        return [{"kept": list(kept), "score": score} for kept, score in self.scores]


def search_layers(
    how: str, score: Score, total: int, count: int, protected: Collection[int] = (), beam: int = BEAM
) -> Search:
    """Return the layers to keep when `count` of `total` are dropped, none of them protected; of equal scores the lowest go.

    Args:
        how: one-shot, greedy, beam or exhaustive.
        beam: how many candidates a round of beam keeps.
    Raises:
        UsageError: too few layers are unprotected, or exhaustive would score too many candidates.
        MergeError: a score is no number.
    """
    free = [layer for layer in range(total) if layer not in protected]
    if not 0 < count <= min(len(free), total - 1):
        raise UsageError(
            f"cannot drop {count} of {total} layers{f', {total - len(free)} of them protected' if protected else ''}: expected "
            f"1 to {min(len(free), total - 1)}."
        )
    if beam < 1:
        raise UsageError(f"a beam keeps at least 1 candidate, found {beam}.")
    seen = _Seen(score, total)
    if how == "one-shot":
        ranked = sorted(free, key=lambda layer: (-seen((layer,)), layer))
        return seen.result(tuple(sorted(ranked[:count])))
    if how == "exhaustive":
        candidates = math.comb(len(free), count)
        if candidates > MOST_CANDIDATES:
            raise UsageError(
                f"exhaustive would score {candidates:,} choices of {count} of {len(free)} layers, more than {MOST_CANDIDATES:,}. "
                "Use beam or greedy, or protect layers."
            )
        return seen.result(max(combinations(free, count), key=lambda dropped: (seen(dropped), [-d for d in dropped])))
    front: list[Kept] = [()]
    for _ in range(count):
        grown = sorted(
            {tuple(sorted((*dropped, layer))) for dropped in front for layer in free if layer not in dropped}
        )
        front = sorted(grown, key=lambda dropped: (-seen(dropped), dropped))[: 1 if how == "greedy" else beam]
    return seen.result(front[0])


class _Seen:
    """The scores so far, by the layers that are dropped; a candidate is scored once."""

    def __init__(self, score: Score, total: int) -> None:
        self._score, self._total = score, total
        self._scores: dict[Kept, float] = {}

    def __call__(self, dropped: Sequence[int]) -> float:
        key = tuple(dropped)
        if key not in self._scores:
            value = float(self._score(self._kept(key)))
            if not math.isfinite(value):
                raise MergeError(f"the score of the model without layers {key} is {value}; expected a finite number.")
            self._scores[key] = value
        return self._scores[key]

    def _kept(self, dropped: Sequence[int]) -> Kept:
        return tuple(layer for layer in range(self._total) if layer not in dropped)

    def result(self, dropped: Sequence[int]) -> Search:
        listed = tuple((self._kept(key), value) for key, value in self._scores.items())
        return Search(self._kept(dropped), listed)
