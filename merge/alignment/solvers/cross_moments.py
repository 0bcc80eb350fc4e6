"""Means, variances and correlations of the units of two models over the same rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from merge.symmetry.notation import View

# Groups whose elements mix units: they are matched on covariances, because no unit has a variance that they keep.
MIXING_GROUPS = frozenset({"linear", "orthogonal", "orthogonal_one", "rotary", "rotary_adjacent"})

# A unit whose variance is below this share of the average varies by rounding only; it correlates with nothing.
DEAD_UNIT_VARIANCE = 1e-10


class Moments:
    """Running mean and variance of units about the first batch's mean; sums over batches in float64.

    Attributes:
        count: rows so far.
        calls: batches so far.
    """

    def __init__(self) -> None:
        self.count, self.calls = 0, 0

    def add(self, rows: Float[Tensor, "rows units"]) -> Float[Tensor, "rows units"]:
        """Add a batch of rows, and return it about the first batch's mean, in its own dtype."""
        if self.calls == 0:
            self.shift = rows.mean(0)
            self.sums = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
            self.squares = torch.zeros_like(self.sums)
        rows = rows - self.shift
        # Those of one batch in the dtype of the rows, pairwise as torch adds them up: float64 would take five times as long.
        self.sums += rows.sum(0)
        self.squares += rows.square().sum(0)
        self.count, self.calls = self.count + len(rows), self.calls + 1
        return rows

    @property
    def mean(self) -> Float[Tensor, " units"]:
        return self.shift + self.sums / self.count

    @property
    def variance(self) -> Float[Tensor, " units"]:
        return (self.squares / self.count - (self.sums / self.count).square()).clamp_min(0)

    @property
    def deviation(self) -> Float[Tensor, " units"]:
        return self.variance.sqrt()


class CrossMoments:
    """Running cross-moments of two activations about the first batch's means; products in float32.

    Attributes:
        site, view: where the activations are, and which units of them are compared.
        own: for each side the products of the units of each block with one another, (blocks, n, n); empty without blocks.
    """

    def __init__(self, site: str = "", view: View | None = None, blocks: int = 0) -> None:
        """Args:
        blocks: into so many blocks the units are divided whose own products are wanted.
        """
        self.a, self.b = Moments(), Moments()
        self.site, self.view, self.blocks = site, view, blocks
        self.own: list[Tensor] = []

    @property
    def count(self) -> int:
        """Rows so far."""
        return self.a.count

    def add(self, a: Float[Tensor, "rows m"], b: Float[Tensor, "rows n"]) -> None:
        """Add a batch of rows; row i of a and of b belong to the same token."""
        if self.a.calls == 0:
            with torch.inference_mode(False):  # it is written to outside as well
                self.cross = torch.zeros(a.shape[1], b.shape[1], device=a.device)
                if self.blocks:
                    sizes = [x.shape[1] // self.blocks for x in (a, b)]
                    self.own = [torch.zeros(self.blocks, n, n, device=a.device) for n in sizes]
        a, b = self.a.add(a), self.b.add(b)
        self.cross.addmm_(a.T, b)
        for own, x in zip(self.own, (a, b), strict=False):
            rows = x.unflatten(1, (self.blocks, -1)).movedim(1, 0)
            own.baddbmm_(rows.mT, rows)

    def covariance(self) -> tuple[Float[Tensor, "m n"], Float[Tensor, " m"], Float[Tensor, " n"]]:
        """Return covariances, and the variances of a's units and of b's; float64, on the CPU."""
        a, b = (side.sums.cpu() / side.count for side in (self.a, self.b))
        return self.cross.cpu().double() / self.a.count - a[:, None] * b, self.a.variance.cpu(), self.b.variance.cpu()

    def own_covariances(self) -> list[Float[Tensor, "blocks n n"]]:
        """Return the covariances of the units inside each block of a, and of b; float64, on the CPU."""
        covariances = []
        for own, side in zip(self.own, (self.a, self.b), strict=True):
            means = (side.sums.cpu() / side.count).unflatten(0, (self.blocks, -1))
            covariances.append(own.cpu().double() / side.count - means[:, :, None] * means[:, None, :])
        return covariances

    def correlation(self) -> Float[Tensor, "m n"]:
        """Return Pearson correlations, float64; 0 for a unit that never varies."""
        return self.correlation_of(slice(None))

    def correlation_of(self, units: slice) -> Float[Tensor, "some n"]:
        """Return the correlations of some units of a with all of b, as `correlation`."""
        a, b = (side.sums.cpu() / side.count for side in (self.a, self.b))
        factors = []
        for variance in (side.variance.cpu() for side in (self.a, self.b)):
            factors.append(torch.where(variance > DEAD_UNIT_VARIANCE * variance.mean(), variance, torch.inf).rsqrt())
        rows = self.cross[units].cpu().double() / self.a.count
        rows -= a[units][:, None] * b
        return rows.mul_(factors[0][units][:, None]).mul_(factors[1])
