"""Layerwise linear feature connectivity: are the features of the average the average of the features?

With f(theta) the features at a site on all rows, and theta(lam) = (1 - lam) A + lam B:

    distance     1 - cos( f(theta(lam)), (1 - lam) f(A) + lam f(B) )
    coefficient  < f(theta(lam)), f_avg > / |f_avg|^2    with f_avg the average of the features; 1 is the same scale
    baseline     1 - cos( f(A), f(B) )

over all rows as one vector (global), over the rows of each text, and of each row alone. LLFC holds where the distance is
near 0 although the baseline is not, and the coefficient is near 1.

Source: Zhou et al. 2023, arXiv:2307.08286, "Layerwise Linear Feature Connectivity": its definition, E[1 - cosine] and coef.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evals.inside.sums import Running, Spread, cosine_distances

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from evals.inside.rows import Rows
    from evals.inside.sites import Site


@dataclass(frozen=True)
class Angle:
    """1 - cosine of two features: of all rows as one vector, and its spread over texts and over rows."""

    whole: float
    texts: Spread
    rows: Spread


@dataclass(frozen=True)
class AtLam:
    """LLFC at one lam: distance to the average of the features, and the scale against it."""

    lam: float
    distance: Angle
    coefficient: float
    coefficients: Spread


@dataclass(frozen=True)
class SiteConnectivity:
    """LLFC at one site.

    Attributes:
        width: units.
        count: rows.
        baseline: 1 - cosine of A's features and B's.
        at: for each lam.
    """

    site: str
    kind: str
    layer: int | None
    width: int
    count: int
    baseline: Angle
    at: tuple[AtLam, ...]


class Angles:
    """Running products of two features x and y: by text in float64, and the spread of 1 - cosine over rows."""

    def __init__(self, texts: int) -> None:
        self.products = torch.zeros(texts, 3, dtype=torch.float64)
        self.rows = Running()

    def add(self, x: Float[Tensor, "rows d"], y: Float[Tensor, "rows d"], texts: Tensor) -> None:
        """Add rows; `texts` is the number of the text of each, among all."""
        products = torch.stack([(x * y).sum(1), x.square().sum(1), y.square().sum(1)], 1).cpu()
        self.rows.add(cosine_distances(*products.T))
        self.products.index_add_(0, texts.cpu(), products)

    @property
    def angle(self) -> Angle:
        by_text = Running()
        by_text.add(cosine_distances(*self.products.T))
        whole = float(cosine_distances(*self.products.sum(0)))
        return Angle(whole, by_text.spread, self.rows.spread)

    @property
    def coefficient(self) -> tuple[float, Spread]:
        """<x, y> / |y|^2 of all rows, and its spread over texts whose y is not 0."""
        dot, _, norm = self.products.T
        by_text = Running()
        by_text.add((dot / norm)[norm > 0])
        total = float(norm.sum())
        return (float(dot.sum()) / total if total else float("nan")), by_text.spread


class Connectivity:
    """Running LLFC of one site."""

    def __init__(self, site: Site, lams: tuple[float, ...], texts: int) -> None:
        self.site, self.lams, self.count, self.width = site, lams, 0, 0
        self.ends = Angles(texts)
        self.between = {lam: Angles(texts) for lam in lams}

    def add_ends(self, a: Rows, b: Rows, texts: Tensor) -> None:
        """Add the rows of both models in a batch; texts are numbered among all."""
        self.count, self.width = self.count + len(a.values), a.values.shape[1]
        self.ends.add(a.values.double(), b.values.double(), texts[a.texts])

    def add_between(self, lam: float, a: Rows, b: Rows, middle: Rows, texts: Tensor) -> None:
        """Add the rows of the interpolated model, beside those of both."""
        average = torch.lerp(a.values.double(), b.values.double(), lam)
        self.between[lam].add(middle.values.double(), average, texts[a.texts])

    @property
    def result(self) -> SiteConnectivity:
        at = tuple(AtLam(lam, each.angle, *each.coefficient) for lam, each in self.between.items())
        site = self.site
        return SiteConnectivity(site.name, site.kind, site.layer, self.width, self.count, self.ends.angle, at)
