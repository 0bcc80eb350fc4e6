"""Sums over the tokens of a text, of the states of two models at pairs of cuts: what maps and linear CKA are made of.

A cut of a model is a state, as in `merge.layers.stitching`. Sums of all pairs of cuts come from one pass, and no row is kept.

Source: Kornblith et al. 2019, arXiv:1905.00414, equation 5 (linear CKA).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merge.layers.activations import LiveLayers, states_of
from merge.layers.repair.ridge import NO_VARIANCE, NormalEquations
from merge.layers.stitching.maps import Norm
from merge.layers.stitching.norms import states_before_norms
from merge.progress import track

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch

Cut = tuple[int, int]
NO_NORMS: tuple[Mapping[int, Norm], Mapping[int, Norm]] = ({}, {})


class StateSums:
    """Sums over the tokens of a text, of the states of two models: all that maps and CKA are made of.

    Args:
        norms: of either model, cut -> the norm that writes that state. Such a state is read as n before gain and bias, so that
            a gain of 0 hides no unit; sums of the state itself, gain n + bias, follow.
    """

    def __init__(self, cuts: Iterable[Cut], norms: tuple[Mapping[int, Norm], Mapping[int, Norm]] = NO_NORMS) -> None:
        self.cuts = tuple(dict.fromkeys(cuts))
        self.norms = norms
        self.rows = 0
        self.aa: dict[int, Tensor] = {}
        self.bb: dict[int, Tensor] = {}
        self.ab: dict[Cut, Tensor] = {}

    def read(self, a: LiveLayers, b: LiveLayers, batches: Sequence[Batch], label: str = "reading states") -> StateSums:
        """Add the states of batches that both models read, each with a constant 1 as its last unit."""
        for batch in track(list(batches), label):
            x, y = (
                _states(live, batch, {cut[side] for cut in self.cuts}, self.norms[side])
                for side, live in enumerate((a, b))
            )
            self.rows += len(next(iter(x.values())))
            for grams, states in ((self.aa, x), (self.bb, y)):
                for cut, rows in states.items():
                    grams[cut] = grams.get(cut, 0.0) + rows.T @ rows
            for k, m in self.cuts:
                self.ab[k, m] = self.ab.get((k, m), 0.0) + x[k].T @ y[m]
        return self

    def equations(self, at: Cut, reverse: bool = False) -> NormalEquations:
        """Return the sums for a map from the state of A to that of B, or the reverse."""
        return self._equations(at, reverse, self._norm(at, int(not reverse)))

    def before_norm(self, at: Cut, reverse: bool = False) -> tuple[NormalEquations, Norm | None]:
        """Return the same with the state that is mapped to as it was read, and the norm that then writes it."""
        return self._equations(at, reverse, None), self._norm(at, int(not reverse))

    def _equations(self, at: Cut, reverse: bool, norm: Norm | None) -> NormalEquations:
        below, above = (self.bb[at[1]], self.aa[at[0]]) if reverse else (self.aa[at[0]], self.bb[at[1]])
        cross, norm_below = self.ab[at].T if reverse else self.ab[at], self._norm(at, int(reverse))
        xx, yy = _square(below, norm_below), _square(above, norm)
        made = NormalEquations(len(xx) - 1, len(yy) - 1)
        made.xx, made.xy = xx, _written(_written(cross.T, norm_below).T, norm)[:, :-1].contiguous()
        made.y, made.yy, made.rows = yy[-1, :-1], float(yy.diagonal()[:-1].sum()), self.rows
        return made

    def cka(self, at: Cut) -> float:
        """Return |cov(x, y)|^2 / (|cov(x, x)| |cov(y, y)|), Frobenius norms; 0 where a state does not vary."""
        norms = [self._norm(at, side) for side in (0, 1)]
        xx, yy = _square(self.aa[at[0]], norms[0]), _square(self.bb[at[1]], norms[1])
        xy = _written(_written(self.ab[at].T, norms[0]).T, norms[1])
        cross, left, right = (_centred(gram, self.rows).norm() for gram in (xy, xx, yy))
        varies = left > NO_VARIANCE * xx.norm() and right > NO_VARIANCE * yy.norm()
        return float(cross / left * cross / right) if varies else 0.0

    def _norm(self, at: Cut, side: int) -> Norm | None:
        return self.norms[side].get(at[side])


def _written(sums: Tensor, norm: Norm | None) -> Tensor:
    """Return sums of products with gain n + bias in place of the n of the last axis, whose last entry is that of the 1."""
    if norm is None:
        return sums
    ones = sums[:, -1:]
    return torch.cat([sums[:, :-1] * norm.gain.double() + ones * norm.bias.double(), ones], 1)


def _square(gram: Tensor, norm: Norm | None) -> Tensor:
    return _written(_written(gram, norm).T, norm)


def _centred(gram: Tensor, rows: int) -> Tensor:
    """Return sums of products about the means, from sums whose last row and column are those of a constant."""
    return gram[:-1, :-1] - torch.outer(gram[:-1, -1], gram[-1, :-1]) / rows


def _states(live: LiveLayers, batch: Batch, cuts: set[int], norms: Mapping[int, Norm]) -> dict[int, Tensor]:
    """Return the wanted states, before the norm where there is one, with a constant 1 as the last unit."""
    normed = cuts & norms.keys()
    states = states_before_norms(live, batch, normed) if normed else {}
    if cuts - normed:
        states |= states_of(live, batch, cuts - normed)
    return {
        cut: torch.cat([rows.double(), torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        for cut, rows in states.items()
    }
