"""Elements: of every group the element that gains most, where nothing stretches.

An axis's gain says how well unit j of b fills place i of a, as a matrix. A permutation takes one entry of each row, a
rotation E all of them: both are worth <gain, E>. Of groups that also stretch (scales, every invertible map) the elements
that do not are compared here; `merge.alignment.solvers.balance` has brought both models to one scale before.
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


@dataclass(frozen=True)
class Element:
    """What acts on one axis: place i takes unit index[i], then the map acts; a diagonal, a matrix or none."""

    index: Int[Tensor, " n"]
    map: Tensor | None = None

    def worth(self, gain: Float[Tensor, "n n"]) -> float:
        """Return <gain, E>."""
        taken = gain[:, self.index]
        if self.map is None:
            return float(taken.diagonal().sum())
        return float((taken.diagonal() * self.map).sum() if self.map.ndim == 1 else (taken * self.map).sum())


Gain = Float[Tensor, "n n"]
# From the gain under what acts on the axis, and the gain of what is moved and no more, to the best element.
Best = Callable[[Gain, Gain], Element]


def best_element(group: str, gain: Gain, still: Gain | None = None) -> Element:
    """Return the element of the group, stretching nothing, that is worth most.

    Args:
        gain: float64; of what the group acts on.
        still: of what is permuted along but takes no sign (role `=`); a rotation meets none that differs by places.
    """
    held = torch.zeros_like(gain) if still is None else still
    if not bool(gain.any() or held.any()):
        return Element(torch.arange(len(gain)))  # nothing tells the units apart
    return BEST[group](gain, held)


def score_bound(group: str, gains: Float[Tensor, "... n n"]) -> Float[Tensor, ...]:
    """Return for many gains at once what no element is worth more than."""
    if group in ("linear", "orthogonal", "orthogonal_one"):
        # The singular values' sum, which the best rotation is worth, by way of the sum of their squares.
        return gains.square().sum((-1, -2)).sqrt() * gains.shape[-1] ** 0.5
    if group in ("rotary", "rotary_adjacent"):
        return _numbers(gains, group == "rotary_adjacent").abs().sum(-1)
    if group == "rotary_sign":
        return _numbers(gains, False).real.abs().sum(-1)
    if group == "none":
        return gains.diagonal(dim1=-2, dim2=-1).sum(-1)
    sized = gains.abs() if group in ("signed", "real", "sign") else gains
    return torch.minimum(sized.amax(-1).sum(-1), sized.amax(-2).sum(-1))


def _permuted(gain: Gain, still: Gain) -> Element:
    return Element(match_axis(gain + still))


def _unmoved(gain: Gain, still: Gain) -> Element:
    return Element(torch.arange(len(gain)))


def _signed(gain: Gain, still: Gain) -> Element:
    index = match_axis(gain.abs() + still)
    signs = torch.where(gain.gather(1, index[:, None])[:, 0] < 0, -1.0, 1.0).double()
    return Element(index, None if bool((signs > 0).all()) else signs)


def _one_sign(gain: Gain, still: Gain) -> Element:
    """Return the better of the best permutation and the best one with the whole axis turned."""
    found = [Element(match_axis(sign * gain + still)) for sign in (1, -1)]
    plain, turned = (sign * one.worth(gain) + one.worth(still) for sign, one in zip((1, -1), found, strict=True))
    if plain >= turned:
        return found[0]
    return Element(found[1].index, -torch.ones(len(gain), dtype=torch.float64))


def _rotated(gain: Gain, still: Gain) -> Element:
    return Element(torch.arange(len(gain)), orthogonal(gain))


def _rotated_around_ones(gain: Gain, still: Gain) -> Element:
    return Element(torch.arange(len(gain)), rotation_fixing_ones(gain))


def _phases(adjacent: bool) -> Best:
    def best(gain: Gain, still: Gain) -> Element:
        angle = _numbers(gain, adjacent).angle()
        return Element(torch.arange(len(gain)), complex_map(angle.cos(), angle.sin(), adjacent))

    return best


def _numbers(gains: Float[Tensor, "... n n"], adjacent: bool) -> Tensor:
    """Return z for every pair of places: turning it by theta is worth Re(e^(-i theta) z)."""
    one, other = rotary_pairs(gains.shape[-1], adjacent)
    real = gains[..., one, one] + gains[..., other, other]
    return torch.complex(real, gains[..., other, one] - gains[..., one, other])


def _pair_signs(gain: Gain, still: Gain) -> Element:
    half = torch.where(_numbers(gain, False).real < 0, -1.0, 1.0).double()
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
