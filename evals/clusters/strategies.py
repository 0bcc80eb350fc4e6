"""Whether clusters generalise alike: diagnostic scores against the cluster coordinate, and between clusters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evals.clusters.labels import members
from evals.scores.intervals import LEVEL
from evals.scores.permutation_test import PermutationTest, correlation_test, ranks
from merge.errors import UsageError


@dataclass(frozen=True)
class Membership:
    """A diagnostic score inside a cluster and outside.

    Attributes:
        cluster: its label.
        inside, outside: mean scores; models: how many of each have one.
        low, high: of inside - outside at 95 %, Welch's t; None where one side has fewer than two models.
        auc: the probability that a model outside scores higher than one inside, equal scores counting half; .5 where the score
            says nothing of membership.
        test: of the difference; its value is the correlation of membership and score; None where all scores are equal.
        adjusted: p for all tests of this table together (Holm).
    """

    cluster: int
    inside: float
    outside: float
    models: tuple[int, int]
    low: float | None
    high: float | None
    auc: float
    test: PermutationTest | None
    adjusted: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        test = None if self.test is None else self.test.to_json()
        return {**vars(self), "models": list(self.models), "difference": self.inside - self.outside, "test": test}


@dataclass(frozen=True)
class Strategy:
    """A diagnostic score against the clusters.

    Attributes:
        diagnostic: its name.
        models: how many have this score.
        pearson, spearman: its correlation with the cluster coordinate; None without a coordinate, or where the scores are equal.
        memberships: of the second of two clusters; of each where there are more; none for one cluster.
    """

    diagnostic: str
    models: int
    pearson: PermutationTest | None
    spearman: PermutationTest | None
    memberships: tuple[Membership, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        return {
            "diagnostic": self.diagnostic,
            "models": self.models,
            "pearson": None if self.pearson is None else self.pearson.to_json(),
            "spearman": None if self.spearman is None else self.spearman.to_json(),
            "memberships": [each.to_json() for each in self.memberships],
        }


def strategies(
    diagnostics: Mapping[str, Sequence[float]], labels: Sequence[int], coordinate: Any, seed: int = 0
) -> tuple[Strategy, ...]:
    """Return every diagnostic against the clusters, p-values adjusted for their number.

    Args:
        diagnostics: name -> a score of each model, nan where it has none; shape (models,).
        labels: of the clusters, shape (models,).
        coordinate: as `spectral.Embedding` has it, shape (models,); None where there is none.
        seed: of the permutations; each test draws its own, so that a further diagnostic changes no other.
    Raises:
        UsageError: a diagnostic has another number of scores than there are models.
    """
    clusters, table = np.asarray(labels), []
    for name, given in diagnostics.items():
        scores = np.asarray(given, dtype=np.float64)
        if scores.shape != clusters.shape:
            raise UsageError(
                f"diagnostic {name}: expected a score of each of {len(clusters)} models, found shape {scores.shape}."
            )
        known = np.isfinite(scores)
        pearson = spearman = None
        if coordinate is not None:
            x, y = np.asarray(coordinate)[known], scores[known]
            pearson = correlation_test(x, y, np.random.default_rng(seed))
            spearman = correlation_test(ranks(x), ranks(y), np.random.default_rng(seed))
        table.append(Strategy(name, int(known.sum()), pearson, spearman, _memberships(scores, clusters, seed)))
    return _adjusted(table)


def _memberships(scores: Any, labels: Any, seed: int) -> tuple[Membership, ...]:
    clusters = members(labels)
    asked = range(1, 2) if len(clusters) == 2 else range(len(clusters)) if len(clusters) > 2 else ()
    memberships = (membership(scores, labels == label, label, np.random.default_rng(seed)) for label in asked)
    return tuple(each for each in memberships if each is not None)


def membership(scores: Any, inside: Any, cluster: int, generator: np.random.Generator) -> Membership | None:
    """Return a score inside a cluster against outside; None where one side has no score.

    Args:
        scores: shape (models,); nan where a model has none.
        inside: whether each model is in the cluster, shape (models,).
    """
    scores, inside = np.asarray(scores, dtype=np.float64), np.asarray(inside, dtype=bool)
    known = np.isfinite(scores)
    a, b = scores[known & inside], scores[known & ~inside]
    if not len(a) or not len(b):
        return None
    test = correlation_test(inside[known], scores[known], generator)
    low, high = _welch(a, b)
    return Membership(cluster, float(a.mean()), float(b.mean()), (len(a), len(b)), low, high, separation(a, b), test)


def separation(low: Any, high: Any) -> float:
    """Return the probability that a score of `high` exceeds one of `low`, equal ones counting half: the area under the ROC."""
    order = ranks(np.concatenate([low, high]))
    return float((order[len(low) :].sum() - len(high) * (len(high) + 1) / 2) / (len(low) * len(high)))


def _welch(a: Any, b: Any) -> tuple[float | None, float | None]:
    """Return Welch's interval of mean(a) - mean(b)."""
    from scipy.stats import t

    if min(len(a), len(b)) < 2:
        return None, None
    parts = [each.var(ddof=1) / len(each) for each in (a, b)]
    difference, error = float(a.mean() - b.mean()), math.sqrt(sum(parts))
    if error == 0:
        return difference, difference
    freedom = sum(parts) ** 2 / sum(part**2 / (len(each) - 1) for part, each in zip(parts, (a, b), strict=True))
    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
    return difference - half, difference + half


def _adjusted(table: Sequence[Strategy]) -> tuple[Strategy, ...]:
    """Return the table with Holm's p-values over all tests of membership: p_(k) (m - k), never falling."""
    tests = [each.test.p for row in table for each in row.memberships if each.test is not None]
    order = sorted(range(len(tests)), key=tests.__getitem__)
    adjusted, floor = [0.0] * len(tests), 0.0
    for rank, at in enumerate(order):
        floor = max(floor, min(1.0, tests[at] * (len(tests) - rank)))
        adjusted[at] = floor
    values = iter(adjusted)
    return tuple(
        replace(
            row,
            memberships=tuple(
                each if each.test is None else replace(each, adjusted=next(values)) for each in row.memberships
            ),
        )
        for row in table
    )
