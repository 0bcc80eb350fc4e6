"""Similarity of two representations by each measure, with what is computed once a representation.

    cka, debiased cka   `evals.inside.hsic`
    procrustes          |X' Y|_*  of centred representations of unit Frobenius norm; the squared distance after the best
                        rotation is 2 - 2 of it (Williams et al. 2021, arXiv:2110.14739; Ding et al. 2021, arXiv:2108.01661)
    permutation         the same with the best permutation of units in place of a rotation; of equal widths alone
    svcca               mean canonical correlation of the directions that hold 99 % of each variance (Raghu et al. 2017,
                        arXiv:1706.05806)
    neighbours          share of a row's nearest neighbours (cosine, centred) that both have, averaged over rows (Huh et al.
                        2024, arXiv:2405.07987: mutual nearest neighbours)

All are 1 for a rotated copy but `permutation`, which is 1 for a permuted one. Chance is that of rows in another order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from evals.inside.hsic import Hsic, hsic, ratio
from merge.layers.repair.ridge import NO_VARIANCE

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

MEASURES = ("cka", "debiased cka", "procrustes", "permutation", "svcca", "neighbours")
KEPT_VARIANCE = 0.99
NEIGHBOURS = 10
# Of singular values, relative to the largest: what is below is rounding of the covariance.
RANK_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Prepared:
    """A representation, centred, with what every pair that it is in needs of it.

    Attributes:
        values: (rows, units), float64, centred.
    """

    values: Float[Tensor, "rows units"]

    @cached_property
    def own(self) -> Hsic:
        return hsic(self.values, self.values)

    @cached_property
    def norm(self) -> float:
        """Its Frobenius norm."""
        return float(torch.linalg.vector_norm(self.values))

    @cached_property
    def directions(self) -> Float[Tensor, "rows k"]:
        """Orthonormal scores of the fewest principal directions that hold KEPT_VARIANCE."""
        rows, units = self.values.shape
        wide = units > rows
        variances, vectors = torch.linalg.eigh(self.values @ self.values.T if wide else self.values.T @ self.values)
        variances, vectors = variances.flip(0).clamp_min(0), vectors.flip(1)
        share = variances.cumsum(0) / variances.sum()
        kept = min(int((share < KEPT_VARIANCE).sum()) + 1, int((variances > RANK_TOLERANCE * variances[0]).sum()))
        scores = vectors[:, :kept] if wide else self.values @ vectors[:, :kept] / variances[:kept].sqrt()
        # Directions of little variance lose digits in the covariance; one more orthogonalisation restores them.
        return torch.linalg.qr(scores).Q

    @cached_property
    def nearest(self) -> Int[Tensor, "rows k"]:
        """The nearest other rows of each row, by cosine."""
        unit = torch.nn.functional.normalize(self.values).float()
        count = min(NEIGHBOURS, len(unit) - 1)
        indices = []
        for start in range(0, len(unit), 1024):
            cosines = unit[start : start + 1024] @ unit.T
            cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -math.inf
            indices.append(cosines.topk(count).indices)
        return torch.cat(indices)


def prepare(values: Float[Tensor, "rows units"]) -> Prepared:
    """Return a representation in float64, centred; all 0 where it varies by no more than the rounding of float32."""
    exact = values.double()
    centred = exact - exact.mean(0)
    varies = torch.linalg.vector_norm(centred) ** 2 > NO_VARIANCE * torch.linalg.vector_norm(exact) ** 2
    return Prepared(centred if varies else torch.zeros_like(centred))


def similarity(x: Prepared, y: Prepared, measures: tuple[str, ...] = MEASURES) -> dict[str, float]:
    """Return the similarity of two representations of the same rows by each measure; nan where one does not vary.

    `permutation` is left out for representations of different widths.
    """
    values = {}
    cross = hsic(x.values, y.values) if {*measures} & {"cka", "debiased cka", "procrustes", "permutation"} else None
    varies = x.norm > 0 and y.norm > 0
    for name in measures:
        if name == "permutation" and x.values.shape[1] != y.values.shape[1]:
            continue
        values[name] = _measure(name, x, y, cross) if varies else math.nan
    return values


def _measure(name: str, x: Prepared, y: Prepared, cross: Hsic | None) -> float:
    if cross is not None and name == "cka":
        return ratio(cross.biased, x.own.biased, y.own.biased)
    if cross is not None and name == "debiased cka":
        return ratio(cross.unbiased, x.own.unbiased, y.own.unbiased)
    if cross is not None and name == "procrustes":
        return float(torch.linalg.svdvals(cross.covariance).sum()) / (x.norm * y.norm)
    if cross is not None and name == "permutation":
        from scipy.optimize import linear_sum_assignment

        gain = cross.covariance.cpu().numpy()
        rows, columns = linear_sum_assignment(gain, maximize=True)
        return float(gain[rows, columns].sum()) / (x.norm * y.norm)
    if name == "svcca":
        correlations = torch.linalg.svdvals(x.directions.T @ y.directions)
        return float(correlations.clamp(max=1).mean())
    shared = (x.nearest[:, :, None] == y.nearest[:, None, :]).any(2)
    return float(shared.double().mean())
