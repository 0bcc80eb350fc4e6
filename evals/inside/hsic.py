"""Linear HSIC and CKA of two representations, streamed: exact however the rows are cut into batches.

With centred X (n x d) and Y (n x e), and K = X X', L = Y Y':

    biased      HSIC_0 = |Y' X|_F^2
    debiased    HSIC_1 = [ tr(K~ L~) + (1'K~1)(1'L~1) / ((n-1)(n-2)) - 2/(n-2) 1'K~L~1 ] / (n (n-3)),  ~: zero diagonal

    CKA = HSIC(X, Y) / sqrt( HSIC(X, X) HSIC(Y, Y) )

Both follow from sums over rows: of x y', x, y, |x|^2, |y|^2, |x|^2 |y|^2, |y|^2 x and |x|^2 y. The unbiased estimator of
two independent representations is 0 on average; the biased one grows with the widths over the number of rows.

Source: Kornblith et al. 2019, arXiv:1905.00414, equation 5; Song et al. 2012 (JMLR 13), equation 5, for HSIC_1; Nguyen
et al. 2021, arXiv:2010.15327, for CKA by minibatches, which average over batches where these sums are those of all rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

MIN_ROWS = 4  # of HSIC_1


class Hsic:
    """Running linear HSIC of two representations about the means of their first batch; sums in float64."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, x: Float[Tensor, "rows d"], y: Float[Tensor, "rows e"]) -> Hsic:
        """Add rows; row i of both belongs to the same text or token. Returns itself."""
        x, y = x.double(), y.double()
        if self.count == 0:
            self.shift = x.mean(0), y.mean(0)
            self.cross = x.new_zeros(x.shape[1], y.shape[1])
            self.x, self.y = x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1])
            self.x_by_y, self.y_by_x = self.x.clone(), self.y.clone()
            self.squares = x.new_zeros(3)
        x, y = x - self.shift[0], y - self.shift[1]
        of_x, of_y = x.square().sum(1), y.square().sum(1)
        self.cross.addmm_(x.T, y)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.x_by_y += of_y @ x
        self.y_by_x += of_x @ y
        self.squares += torch.stack([of_x.sum(), of_y.sum(), of_x @ of_y])
        self.count += len(x)
        return self

    @property
    def covariance(self) -> Float[Tensor, "d e"]:
        """X' Y of centred rows."""
        return self.cross - torch.outer(self.x, self.y) / self.count

    @property
    def biased(self) -> float:
        """HSIC_0: |Y' X|_F^2 of centred rows."""
        return float(self.covariance.square().sum())

    @property
    def unbiased(self) -> float:
        """HSIC_1; nan for fewer than four rows."""
        n = self.count
        if n < MIN_ROWS:
            return math.nan
        of_x, of_y, both = self.squares.tolist()
        trace = float(self.cross.square().sum()) - both
        totals = (float(self.x @ self.x) - of_x) * (float(self.y @ self.y) - of_y)
        joint = float(self.x @ self.cross @ self.y - self.x @ self.x_by_y - self.y @ self.y_by_x) + both
        return (trace + totals / ((n - 1) * (n - 2)) - 2 * joint / (n - 2)) / (n * (n - 3))


def hsic(x: Tensor, y: Tensor) -> Hsic:
    """Return HSIC of all rows at once."""
    return Hsic().add(x, y)


def ratio(cross: float, x: float, y: float) -> float:
    """Return CKA from three HSIC; nan where a representation does not vary."""
    return cross / math.sqrt(x) / math.sqrt(y) if x > 0 and y > 0 else math.nan
