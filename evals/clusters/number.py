"""How many clusters there are: by the silhouette, and by the gap statistic, to both of which one cluster is an answer.

With a(i) the mean distance of model i to the others of its cluster and b(i) the least mean distance to another cluster,

    silhouette(k)  mean_i (b(i) - a(i)) / max(a(i), b(i)), 0 for a model that is a cluster by itself
    W(k)           sum over clusters of the sum of squared distances of their pairs, divided by their size
    gap(k)         E log W(k) of models without clusters - log W(k)

Models without clusters are drawn evenly from a box along the principal coordinates of the distances. The silhouette says "one"
where it is under .5 for every k; the gap says the smallest k with gap(k) >= gap(m) - s(m), where gap(m) is the largest: a rule
that stops at the first k after which the gap falls finds one cluster where three are equally far from one another. Used together,
there is more than one cluster where both say so and chance does not: the same distances in random places rarely have so high a
silhouette with as many clusters. The silhouette then says how many. Noise about 0 has clusters by both rules, but by chance.

Sources: Rousseeuw 1987, J. Comput. Appl. Math. 20, 53-65; .5 is "a reasonable structure" in Kaufman and Rousseeuw 1990, table 4;
Tibshirani, Walther and Hastie 2001, J. R. Statist. Soc. B 63, 411-423, with their choice (b) of the box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from evals.clusters.hierarchy import cut, link
from evals.clusters.labels import together
from merge.errors import UsageError, nearest

RULES = ("auto", "silhouette", "gap")
REASONABLE_STRUCTURE = 0.5
MOST_CLUSTERS = 10
REFERENCES = 100  # sets of models without clusters
SHUFFLES = 199  # of the distances
SIGNIFICANT = 0.02  # the number with the highest silhouette was chosen among several
# Of the squared distances, added to W: exact zeros inside clusters have no logarithm.
FLOOR = 1e-4


@dataclass(frozen=True)
class Number:
    """How many clusters each rule finds.

    Attributes:
        chosen: the number that is used.
        rule: of RULES, or "given".
        numbers: 1, 2, ...; to these belong:
        silhouettes: None for one cluster, and for as many as models.
        gaps, gap_errors: the gap statistic and its s.
        by_silhouette, by_gap: what each rule says.
        chance: how probable so high a silhouette of `by_silhouette` clusters is for the same distances in random places.
    """

    chosen: int
    rule: str
    numbers: tuple[int, ...]
    silhouettes: tuple[float | None, ...]
    gaps: tuple[float, ...]
    gap_errors: tuple[float, ...]
    by_silhouette: int
    by_gap: int
    chance: float

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def check_number(number: int | str, models: int) -> None:
    """Stop where a number of clusters is no rule, and does not fit the number of models.

    Raises:
        UsageError: names the nearest rule, or the numbers that fit.
    """
    if isinstance(number, str):
        if number not in RULES:
            raise UsageError(f"unknown number of clusters {number!r}.{nearest(number, RULES)} Or give a number.")
    elif not 1 <= number <= models:
        raise UsageError(f"{models} models form 1 to {models} clusters; asked for {number}.")


def choose_number(distances: Any, how: str, asked: int | str, generator: np.random.Generator) -> Number:
    """Return how many clusters there are.

    Args:
        distances: complete, shape (models, models).
        how: of the linkage, as in `hierarchy.link`.
        asked: a rule, or the number itself; the rules are evaluated all the same.
    """
    distances = np.asarray(distances, dtype=np.float64)
    models = len(distances)
    check_number(asked, models)
    numbers = tuple(range(1, min(models, MOST_CLUSTERS) + 1))
    labels = cut(link(distances, how), numbers)
    widths = _silhouettes(distances, numbers, labels)
    gaps, errors = gap_statistic(distances, how, labels, generator)
    by_silhouette, by_gap = _by_silhouette(numbers, widths), _by_gap(numbers, gaps, errors)
    chance = _chance(distances, how, by_silhouette, widths[by_silhouette - 1], generator)
    rules = {
        "silhouette": by_silhouette,
        "gap": by_gap,
        "auto": 1 if by_gap == 1 or chance > SIGNIFICANT else by_silhouette,
    }
    rule, chosen = (asked, rules[asked]) if isinstance(asked, str) else ("given", asked)
    return Number(chosen, rule, numbers, widths, gaps, errors, by_silhouette, by_gap, chance)


def silhouette(distances: Any, labels: Any) -> float:
    """Return the mean silhouette of the models; for two clusters or more."""
    same = together(labels)
    sizes = same.sum(1)
    inside = (distances * same).sum(1) / np.maximum(sizes - 1, 1)
    to_cluster = np.stack([distances[:, labels == label].mean(1) for label in range(labels.max() + 1)], axis=1)
    to_cluster[np.arange(len(labels)), labels] = np.inf
    outside = to_cluster.min(1)
    larger = np.maximum(inside, outside)
    width = np.divide(outside - inside, larger, out=np.zeros(len(labels)), where=(larger > 0) & (sizes > 1))
    return float(width.mean())


def _silhouettes(distances: Any, numbers: Sequence[int], labels: Sequence[Any]) -> tuple[float | None, ...]:
    models = len(distances)
    return tuple(
        silhouette(distances, each) if 1 < k < models else None for k, each in zip(numbers, labels, strict=True)
    )


def _chance(distances: Any, how: str, number: int, width: float | None, generator: np.random.Generator) -> float:
    """Return the p-value of a silhouette of so many clusters among the same distances in random places; 1 for one cluster.

    Source: the random dissimilarity matrix hypothesis of Jain and Dubes 1988, Algorithms for Clustering Data, section 4.1.
    """
    if width is None:
        return 1.0
    pairs, as_high = np.triu_indices(len(distances), 1), 1
    for _ in range(SHUFFLES):
        shuffled = np.zeros_like(distances)
        shuffled[pairs] = generator.permutation(distances[pairs])
        shuffled += shuffled.T
        as_high += silhouette(shuffled, cut(link(shuffled, how), [number])[0]) >= width
    return as_high / (SHUFFLES + 1)


def gap_statistic(
    distances: Any, how: str, labels: Sequence[Any], generator: np.random.Generator
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the gap statistic of each clustering, and its standard error s."""
    from scipy.spatial.distance import pdist, squareform

    spread = _principal_coordinates(distances)
    if not spread.size:
        return (0.0,) * len(labels), (0.0,) * len(labels)
    box = spread.min(0), spread.max(0)
    numbers = [int(each.max()) + 1 for each in labels]
    logs = np.empty((REFERENCES, len(labels)))
    for draw in range(REFERENCES):
        reference = squareform(pdist(generator.uniform(*box, size=spread.shape)))
        logs[draw] = _log_within(reference, cut(link(reference, how), numbers))
    # W of the models is that of the distances themselves: barriers are no metric, and points leave out what fits no space.
    gaps = logs.mean(0) - _log_within(distances, labels)
    errors = logs.std(0) * math.sqrt(1 + 1 / REFERENCES)
    return tuple(gaps.tolist()), tuple(errors.tolist())


def _principal_coordinates(distances: Any) -> Float64[np.ndarray, "models axes"]:
    """Return points with these distances, as far as there are such points: axes of negative variance are left out."""
    squares = np.asarray(distances) ** 2
    centred = squares - squares.mean(0)
    centred = -(centred - centred.mean(1, keepdims=True)) / 2
    values, vectors = np.linalg.eigh(centred)
    kept = values > 1e-9 * max(values.max(), 1e-300)
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def _log_within(distances: Any, labels: Sequence[Any]) -> Float64[np.ndarray, " clusterings"]:
    """Return log W of each clustering."""
    squares = np.asarray(distances) ** 2
    floor = FLOOR * squares.sum() / (2 * len(squares))
    within = [(squares * together(each) / together(each).sum(1)[:, None]).sum() / 2 for each in labels]
    return np.asarray(np.log(np.asarray(within) + floor))


def _by_silhouette(numbers: Sequence[int], widths: Sequence[float | None]) -> int:
    best = max(((width, -k) for k, width in zip(numbers, widths, strict=True) if width is not None), default=(0.0, -1))
    return -best[1] if best[0] >= REASONABLE_STRUCTURE else 1


def _by_gap(numbers: Sequence[int], gaps: Sequence[float], errors: Sequence[float]) -> int:
    top = int(np.argmax(gaps))
    return next(k for k, gap in zip(numbers, gaps, strict=True) if gap >= gaps[top] - errors[top])
