"""Whether the distances behave as distances: triangles, transitivity, and what one reference alone would show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evals.clusters.hierarchy import cut, link
from evals.clusters.labels import rand_index

TOLERANCE = 1e-10  # of the published code


@dataclass(frozen=True)
class Triangles:
    """How often D_ik > D_ij + D_jk over ordered triples of different models.

    Attributes:
        triples, violated: numbers of triples whose pairs are all measured.
        worst: the largest D_ik - (D_ij + D_jk), and triple: its (i, j, k); None where no triple violates the inequality.
        transitive: share of the triples with i-j and j-k connected in which i-k is; None where there is none.
    """

    triples: int
    violated: int
    worst: float | None
    triple: tuple[int, int, int] | None
    transitive: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        return asdict(self)


def triangles(distances: Any, connected: float) -> Triangles:
    """Return the violations of the triangle inequality.

    Args:
        distances: shape (models, models); nan where not measured.
        connected: the largest distance of two models that count as connected.
    """
    distances = np.asarray(distances, dtype=np.float64)
    n = len(distances)
    different = ~np.eye(n, dtype=bool)
    measured = np.isfinite(distances) & different
    near = measured & (np.where(measured, distances, np.inf) <= connected)
    triples = violated = closed = paths = 0
    worst, triple = TOLERANCE, None
    for j in range(n):  # the model in the middle
        over = distances - (distances[:, j, None] + distances[j])
        counted = measured & measured[:, j, None] & measured[j]
        triples += int(counted.sum())
        violated += int((over[counted] > TOLERANCE).sum())
        excess = np.where(counted, over, -np.inf)
        i, k = np.unravel_index(int(excess.argmax()), excess.shape)
        if excess[i, k] > worst:
            worst, triple = float(excess[i, k]), (int(i), j, int(k))
        both = near[:, j, None] & near[j] & measured
        paths += int(both.sum())
        closed += int((both & near).sum())
    return Triangles(triples, violated, worst if triple else None, triple, closed / paths if paths else None)


@dataclass(frozen=True)
class Reference:
    """What the lines from one model alone show.

    Attributes:
        model: its index.
        rand_index: adjusted, of the clusters by distance from it alone with those of all pairs.
        correlation: of |D_ri - D_rj| with D_ij over the other pairs; None where one of them is constant.
    """

    model: int
    rand_index: float
    correlation: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        return asdict(self)


def references(distances: Any, labels: Sequence[int]) -> tuple[Reference, ...]:
    """Return for every model what would be seen with it as the only reference.

    Models are then known by one distance each: their clusters are those of average linkage of |D_ri - D_rj|.

    Args:
        distances: complete, shape (models, models).
        labels: of the clusters from all pairs.
    """
    distances = np.asarray(distances, dtype=np.float64)
    number = int(max(labels)) + 1
    shown = []
    for r in range(len(distances)):
        apart = np.abs(distances[r, :, None] - distances[r])
        others = np.delete(np.arange(len(distances)), r)
        i, j = (others[k] for k in np.triu_indices(len(others), 1))
        seen = cut(link(apart), [number])[0]
        shown.append(Reference(r, rand_index(seen.tolist(), labels), _correlation(apart[i, j], distances[i, j])))
    return tuple(shown)


@dataclass(frozen=True)
class Agreement:
    """Two matrices of the same models, such as of pairs aligned one by one and by way of a reference.

    Attributes:
        pairs: measured in both.
        correlation: over these pairs; None where one matrix is constant.
        lower: share of the pairs in which the first is not higher.
        largest: the largest |difference|, and pair: where it is.
    """

    pairs: int
    correlation: float | None
    lower: float
    largest: float
    pair: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        return asdict(self)


def agreement(first: Any, second: Any) -> Agreement:
    """Return how far two matrices agree, over the pairs that both have."""
    first, second = (np.asarray(each, dtype=np.float64) for each in (first, second))
    i, j = np.triu_indices(len(first), 1)
    both = np.isfinite(first[i, j]) & np.isfinite(second[i, j])
    i, j = i[both], j[both]
    a, b = first[i, j], second[i, j]
    at = int(np.abs(a - b).argmax())
    lower = float((a <= b + TOLERANCE).mean())
    return Agreement(len(a), _correlation(a, b), lower, float(abs(a[at] - b[at])), (int(i[at]), int(j[at])))


def _correlation(a: Any, b: Any) -> float | None:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])
