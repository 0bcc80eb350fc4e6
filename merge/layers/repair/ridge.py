"""Ridge least squares from streamed normal equations, pulled towards weights that are there already.

    minimise over W   sum_rows |x W - y|^2 + ridge * d * |W - W0|^2,     d = mean diagonal of X'X

    W = W0 + (X'X + ridge d I)^-1 (X'Y - X'X W0)

As the ridge grows, W becomes W0. The constant (the last row of W) is not pulled. X'X, X'Y and Y'Y are summed batch by batch,
in float64, so that no row is kept; the squared error of any W on the same rows follows from them. Products inside a batch are
rounded to the rows' own dtype, so where features depend on each other and the ridge is tiny, X'X + ridge d I may have negative
eigenvalues. Along directions whose eigenvalue is lost in that rounding W then stays W0, the limit of a small ridge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from merge.errors import CalibrationError

# Eigenvalues of sums of float32 products below this share of the largest are rounding.
ROUNDING = 1e-7
# A variance below this share of the mean square is the rounding of float32 about a value that does not vary.
NO_VARIANCE = 1e-12


class NormalEquations:
    """The sums X'X, X'Y and Y'Y over rows, with a constant as the last feature where asked."""

    def __init__(self, features: int, targets: int, constant: bool = True) -> None:
        self.constant = constant
        size = features + constant
        self.xx: Float[Tensor, "features features"] = torch.zeros(size, size, dtype=torch.float64)
        self.xy: Float[Tensor, "features targets"] = torch.zeros(size, targets, dtype=torch.float64)
        self.y: Float[Tensor, " targets"] = torch.zeros(targets, dtype=torch.float64)
        self.yy = 0.0
        self.rows = 0

    def add(self, x: Float[Tensor, "rows features"], y: Float[Tensor, "rows targets"]) -> None:
        """Add rows; products of one batch are taken in the rows' own dtype."""
        if self.constant:
            x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        self.xx += (x.T @ x).double()
        self.xy += (x.T @ y).double()
        self.y += y.double().sum(0)
        self.yy += float(y.double().square().sum())
        self.rows += len(x)

    def __add__(self, other: NormalEquations) -> NormalEquations:
        total = NormalEquations(len(self.xx) - self.constant, self.xy.shape[1], self.constant)
        for part in (self, other):
            total.xx, total.xy, total.y = total.xx + part.xx, total.xy + part.xy, total.y + part.y
            total.yy, total.rows = total.yy + part.yy, total.rows + part.rows
        return total

    def solve(self, start: Float[Tensor, "features targets"], ridge: float) -> Float[Tensor, "features targets"]:
        """Return W for a ridge.

        Raises:
            CalibrationError: a sum is not finite.
        """
        inner = len(self.xx) - self.constant
        scale = float(self.xx.diagonal()[:inner].mean()) or 1.0
        pull = torch.full((len(self.xx),), ridge * scale, dtype=torch.float64)
        if self.constant:
            pull[-1] = 1e-9 * scale  # only against a singular system
        square, gap = self.xx + torch.diag(pull), self.xy - self.xx @ start
        if not bool(torch.isfinite(square).all() and torch.isfinite(gap).all()):
            raise CalibrationError(
                "the model's states on the text are not finite (NaN or infinite), so nothing can be fitted."
            )
        factor, failed = torch.linalg.cholesky_ex(square)
        if not int(failed):
            return start + torch.cholesky_solve(gap, factor)
        values, vectors = torch.linalg.eigh(square)
        sure = values > ROUNDING * values[-1]
        kept = vectors[:, sure]
        return start + kept @ ((kept.T @ gap) / values[sure, None])

    def error(self, weights: Float[Tensor, "features targets"]) -> float:
        """Return the mean squared error of a row, summed over targets."""
        gap = self.yy - 2 * float((weights * self.xy).sum()) + float((weights * (self.xx @ weights)).sum())
        return max(gap, 0.0) / max(self.rows, 1)

    def explained(self, weights: Float[Tensor, "features targets"]) -> float:
        """Return R2, the share of the targets' variance that W explains on these rows."""
        variance = self.yy / self.rows - float((self.y / self.rows).square().sum())
        varies = variance > NO_VARIANCE * self.yy / self.rows
        return 1.0 - self.error(weights) / variance if varies else 1.0


def relative_error(gap: float, squares: float, total: Float[Tensor, " units"], count: int) -> float:
    """Return sum |h' - h|^2 / sum |h - mean h|^2; where h does not vary, it is divided by sum |h|^2.

    Args:
        gap: sum |h' - h|^2. squares: sum |h|^2. total: sum h, over `count` rows.
    """
    variance = squares - float(total.square().sum()) / count
    scale = variance if variance > NO_VARIANCE * squares else squares
    return gap / scale if scale > 0 else gap


def check_rows(what: str, rows: int, units: int) -> None:
    """Stop where a fit has fewer tokens than the stream has units.

    Raises:
        CalibrationError: says how many are needed.
    """
    if rows < units:
        raise CalibrationError(
            f"{what} needs text of at least {units} tokens, as many as the stream has units, found {rows}. Give a longer "
            "--text, or more --samples."
        )


@dataclass(frozen=True)
class Fitted:
    """A solution.

    Attributes:
        weights: (features, targets), the constant last.
        ridge: the one that was taken.
        held_out: ridge -> mean squared error on held-out rows, where the ridge was chosen by them.
        explained: R2 on the rows of the fit.
        rows: the number of rows of the fit.
    """

    weights: Float[Tensor, "features targets"]
    ridge: float
    held_out: dict[float, float]
    explained: float
    rows: int


def fit(
    fitting: NormalEquations,
    held_out: NormalEquations,
    start: Float[Tensor, "features targets"],
    ridges: Sequence[float],
    whole: bool = True,
) -> Fitted:
    """Return the fit with the ridge whose fit on the first part has the least error on the held-out part.

    Args:
        whole: whether the held-out rows are fitted too once the ridge is chosen; without, they can still judge the fit.
    """
    errors: dict[float, float] = {}
    if len(ridges) > 1 and held_out.rows:
        errors = {ridge: held_out.error(fitting.solve(start, ridge)) for ridge in ridges}
    ridge = min(errors, key=errors.__getitem__) if errors else ridges[-1]
    everything = fitting + held_out if whole else fitting
    weights = everything.solve(start, ridge)
    return Fitted(weights, ridge, errors, everything.explained(weights), everything.rows)
