"""The best element of each group: the permutation, signs, rotation or phases that gain most, where nothing stretches.

Entry (i, j) of an axis's gain is how well unit j of b fits position i of a. A permutation takes one entry of each row, a
rotation E all of them: the score of both is <gain, E>. Of groups that also stretch (scales, every invertible map) the
elements that do not are compared here; `merge.alignment.solvers.balance` has brought both models to one scale before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from merge.alignment.solvers.assignment import match_axis
from merge.alignment.solvers.procrustes import orthogonal, rotation_fixing_ones
from merge.symmetry.groups import complex_map, rotary_pairs

# What rounding may leave of a sum of singular values below the score of the rotation itself.
SINGULAR_SLACK = 1e-12


@dataclass(frozen=True)
class Element:
    """What acts on one axis: position i takes unit index[i], then the map acts; a diagonal, a matrix or none."""

    index: Int[Tensor, " n"]
    map: Tensor | None = None

    def score(self, gain: Float[Tensor, "n n"]) -> float:
        """Return <gain, E>."""
        if self.map is not None and self.map.ndim == 2:
            return float((gain[:, self.index] * self.map).sum())
        taken = gain.gather(1, self.index[:, None])[:, 0]
        return float(taken.sum() if self.map is None else (taken * self.map).sum())


Gain = Float[Tensor, "n n"]
# From the gain of tensors that take the map, and the gain of those that are permuted only (or one zero), to the best element.
Best = Callable[[Gain, Gain], Element]


def best_element(group: str, gain: Gain, held: Gain | None = None) -> Element:
    """Return the element of the group, stretching nothing, with the largest score.

    Args:
        gain: float64; of tensors that the group acts on.
        held: of those that are permuted with them but take no sign (role `=`); a rotation meets none that differs by unit.
    """
    if not bool(gain.any() or (held is not None and held.any())):
        return Element(torch.arange(len(gain)))  # nothing distinguishes the units
    return BEST[group](gain, torch.zeros((), dtype=gain.dtype) if held is None else held)


def score_bound(group: str, gains: Float[Tensor, "... n n"]) -> Float[Tensor, ...]:
    """Return, for many gains at once, an upper bound of the score of every element of the group."""
    if group in ("linear", "orthogonal", "orthogonal_one"):
        # The best rotation scores the sum of the singular values. A looser bound would let many more rotations be computed, each
        # at three times the cost.
        return torch.linalg.svdvals(gains).sum(-1) * (1 + SINGULAR_SLACK)
    if group in ("rotary", "rotary_adjacent"):
        return _complex_gains(gains, group == "rotary_adjacent").abs().sum(-1)
    if group == "rotary_sign":
        return _complex_gains(gains, False).real.abs().sum(-1)
    if group == "none":
        return gains.diagonal(dim1=-2, dim2=-1).sum(-1)
    sized = gains.abs() if group in ("signed", "real", "sign") else gains
    return torch.minimum(sized.amax(-1).sum(-1), sized.amax(-2).sum(-1))


def _permuted(gain: Gain, held: Gain) -> Element:
    return Element(match_axis(gain + held))


def _unmoved(gain: Gain, held: Gain) -> Element:
    return Element(torch.arange(len(gain)))


def _signed(gain: Gain, held: Gain) -> Element:
    index = match_axis(gain.abs() + held)
    signs = torch.where(gain.gather(1, index[:, None])[:, 0] < 0, -1.0, 1.0).double()
    return Element(index, None if bool((signs > 0).all()) else signs)


def _one_sign(gain: Gain, held: Gain) -> Element:
    """Return the better of the best permutation and the best one with the whole axis negated."""
    elements = [Element(match_axis(sign * gain + held)) for sign in (1, -1)]
    scores = [element.score(gain) for element in elements]
    held_scores = [element.score(held) if held.ndim else 0.0 for element in elements]
    kept, negated = scores[0] + held_scores[0], -scores[1] + held_scores[1]
    if kept >= negated:
        return elements[0]
    return Element(elements[1].index, -torch.ones(len(gain), dtype=torch.float64))


def _rotated(gain: Gain, held: Gain) -> Element:
    return Element(torch.arange(len(gain)), orthogonal(gain))


def _rotated_around_ones(gain: Gain, held: Gain) -> Element:
    return Element(torch.arange(len(gain)), rotation_fixing_ones(gain))


def _phases(adjacent: bool) -> Best:
    def best(gain: Gain, held: Gain) -> Element:
        angle = _complex_gains(gain, adjacent).angle()
        return Element(torch.arange(len(gain)), complex_map(angle.cos(), angle.sin(), adjacent))

    return best


def _complex_gains(gains: Float[Tensor, "... n n"], adjacent: bool) -> Tensor:
    """Return z for every rotary pair: the score of a phase theta is Re(e^(-i theta) z)."""
    first, second = rotary_pairs(gains.shape[-1], adjacent)
    real = gains[..., first, first] + gains[..., second, second]
    return torch.complex(real, gains[..., second, first] - gains[..., first, second])


def _pair_signs(gain: Gain, held: Gain) -> Element:
    half = torch.where(_complex_gains(gain, False).real < 0, -1.0, 1.0).double()
    signs = torch.cat([half, half])
    return Element(torch.arange(len(gain)), None if bool((signs > 0).all()) else signs)


BEST: Mapping[str, Best] = {
    "permutation": _permuted,
    "none": _unmoved,
    "signed": _signed,
    "sign": _one_sign,
    "positive": _permuted,
    "real": _signed,
    "linear": _rotated,
    "orthogonal": _rotated,
    "orthogonal_one": _rotated_around_ones,
    "rotary": _phases(adjacent=False),
    "rotary_adjacent": _phases(adjacent=True),
    "rotary_sign": _pair_signs,
}
