"""Two models, site by site: every pair of representations, the confidence of some, and what chance would give.

The standard error of a pair is the standard deviation of its similarity over random halves of the rows: that of a half about
the whole is that of the whole (the delete-half jackknife: Shao and Wu 1989, Annals of Statistics 17). By token whole texts are
drawn, as tokens of a text are not independent. Chance is the mean over random orders of B's texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evals.inside.measures import Prepared, prepare, similarity
from merge.progress import track

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from evals.inside.representations import Representation

HALVES, SHUFFLES = 10, 2


@dataclass(frozen=True)
class Confident:
    """A similarity with its standard error and what chance gives."""

    value: float
    standard_error: float
    chance: float


@dataclass(frozen=True)
class SitePair:
    """Two sites that are compared closely.

    Attributes:
        best: the site of B that is most similar to this one of A; None where no similarity to it is defined.
    """

    a: str
    b: str
    measures: dict[str, Confident]
    best: str | None


@dataclass(frozen=True)
class Compared:
    """The similarities of two models: of all pairs of sites, (sites of A, sites of B) for each measure; and of close pairs."""

    a: tuple[str, ...]
    b: tuple[str, ...]
    matrices: dict[str, list[list[float | None]]]
    pairs: tuple[SitePair, ...]


def compare(
    a: Sequence[Representation],
    b: Sequence[Representation],
    texts: Int[Tensor, " rows"],
    measures: tuple[str, ...],
    seed: int,
) -> Compared:
    """Compare the representations of two models; rows belong together.

    Args:
        texts: the number of the text of each row.
        seed: of halves and shuffles.
    """
    left, right = [prepare(each.values) for each in a], [prepare(each.values) for each in b]
    cells = [(i, j) for i in range(len(a)) for j in range(len(b))]
    values = {(i, j): similarity(left[i], right[j], measures) for i, j in track(cells, "comparing sites")}
    matrices = {
        name: [[values[i, j].get(name) for j in range(len(b))] for i in range(len(a))]
        for name in measures
        if any(name in each for each in values.values())
    }
    judge = "debiased cka" if "debiased cka" in measures else measures[0]
    generator, pairs = torch.Generator().manual_seed(seed), []
    partners = _partners([each.site.name for each in a], [each.site.name for each in b])
    for i, j in track(partners, "resampling"):
        measured = _confident(a[i].values, b[j].values, values[i, j], texts, generator)
        similar = {b[k].site.name: values[i, k].get(judge, math.nan) for k in range(len(b))}
        defined = {name: value for name, value in similar.items() if not math.isnan(value)}
        best = max(defined, key=lambda name: defined[name]) if defined else None
        pairs.append(SitePair(a[i].site.name, b[j].site.name, measured, best))
    of_a, of_b = (tuple(each.site.name for each in side) for side in (a, b))
    return Compared(of_a, of_b, matrices, tuple(pairs))


def _partners(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """Return for each site of A the site of B of the same name; of models of other depth that at the same share of the way."""
    if list(a) == list(b):
        return [(i, i) for i in range(len(a))]
    span = max(len(a) - 1, 1)
    return [(i, round(i * (len(b) - 1) / span)) for i in range(len(a))]


def _confident(
    x: Float[Tensor, "rows d"],
    y: Float[Tensor, "rows e"],
    values: dict[str, float],
    texts: Int[Tensor, " rows"],
    generator: torch.Generator,
) -> dict[str, Confident]:
    names, count = tuple(values), int(texts.max()) + 1
    halves = []
    for _ in range(HALVES):
        drawn = torch.zeros(count, dtype=torch.bool)
        drawn[torch.randperm(count, generator=generator)[: count // 2]] = True
        kept = drawn[texts].to(x.device)
        halves.append(similarity(prepare(x[kept]), prepare(y[kept]), names))
    shuffled = []
    of_x: Prepared = prepare(x)
    for _ in range(SHUFFLES):
        order = torch.randperm(len(y), generator=generator).to(y.device)
        shuffled.append(similarity(of_x, prepare(y[order]), names))
    return {
        name: Confident(value, _deviation([half[name] for half in halves]), sum(s[name] for s in shuffled) / SHUFFLES)
        for name, value in values.items()
    }


def _deviation(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).std())
