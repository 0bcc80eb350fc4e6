"""Groups: what may act on an axis besides moving its units, and leave the function of the model as it is.

A map is the linear part of an element: on an axis of shape (n,) a diagonal (n,) or a matrix (n, n); on an axis inside
blocks, of shape (blocks, n), one for every block: (blocks, n) or (blocks, n, n). All in float64. An element first
permutes the axis, then applies its map.

Which group acts is decided by what the model does on the axis: a function of single units leaves permutations and what
it commutes with; nothing but matrices in between leaves every invertible map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]
# Of an axis (n,) or (blocks, n) -> a random map; None where the group has none but the identity.
Draw = Callable[[Shape, torch.Generator], Tensor | None]

# How far O O^T may be from the identity, and O 1 from 1: rounding of a float64 decomposition.
ROUNDING = 1e-8
# Random scales lie between its inverse and this, so that nothing drawn is badly conditioned.
SPREAD = 2.0


@dataclass(frozen=True)
class Group:
    """A group that acts on an axis.

    Attributes:
        says: what its maps are and what leaves them free, in one line.
        random: shape of the axis, generator -> a well-conditioned map, or None if only the identity is in the group.
        holds: a map, as a diagonal or as matrices, -> whether it is an element; finite and of the right shape already.
    """

    says: str
    random: Draw
    holds: Callable[[Tensor, bool], bool]

    def contains(self, mapped: Tensor, shape: Shape) -> bool:
        """Return whether a map on an axis of this shape is an element of the group."""
        full = is_full(mapped, shape)
        if tuple(mapped.shape) != ((*shape, shape[-1]) if full else shape) or mapped.dtype != torch.float64:
            return False
        return bool(mapped.isfinite().all()) and self.holds(mapped, full)


def is_full(mapped: Tensor, shape: Shape) -> bool:
    """Return whether a map on an axis of this shape is matrices, not diagonals."""
    return mapped.ndim == len(shape) + 1


def _signs(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=generator).double() * 2 - 1


def _scales(shape: Shape, generator: torch.Generator) -> Tensor:
    return SPREAD ** (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1)


def _nothing(shape: Shape, generator: torch.Generator) -> None:
    return None


def _one_sign(shape: Shape, generator: torch.Generator) -> Tensor:
    # One draw in two would be the identity.
    return -torch.ones(shape, dtype=torch.float64)


def _real(shape: Shape, generator: torch.Generator) -> Tensor:
    return _signs(shape, generator) * _scales(shape, generator)


def _orthogonal(shape: Shape, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn)[0]


def _orthogonal_one(shape: Shape, generator: torch.Generator) -> Tensor:
    """Return maps that fix the ones vector: H diag(1, O) H, where H swaps the first axis and the ones vector's direction."""
    n = shape[-1]
    normal = torch.full((n,), n**-0.5, dtype=torch.float64)
    normal[0] -= 1
    swap = torch.eye(n, dtype=torch.float64)
    if n > 1:
        swap -= 2 * torch.outer(normal, normal) / normal.dot(normal)
    inside = torch.zeros(*shape, n, dtype=torch.float64)
    inside[..., 0, 0] = 1
    inside[..., 1:, 1:] = _orthogonal((*shape[:-1], n - 1), generator)
    return swap @ inside @ swap


def _linear(shape: Shape, generator: torch.Generator) -> Tensor:
    left, right = _orthogonal(shape, generator), _orthogonal(shape, generator)
    return left * _scales(shape, generator)[..., None, :] @ right


def _paired(adjacent: bool) -> Draw:
    """Return the draw of a complex scalar r e^{i theta} for every pair of places."""

    def draw(shape: Shape, generator: torch.Generator) -> Tensor:
        half = (*shape[:-1], shape[-1] // 2)
        scale = _scales(half, generator)
        angle = torch.rand(half, generator=generator, dtype=torch.float64) * (2 * torch.pi)
        return complex_map(scale * angle.cos(), scale * angle.sin(), adjacent)

    return draw


def rotary_pairs(n: int, adjacent: bool) -> tuple[Tensor, Tensor]:
    """Return the first and the second place of every pair: (2i, 2i + 1) if adjacent, else (i, i + n/2)."""
    places = torch.arange(n)
    return (places[0::2], places[1::2]) if adjacent else (places[: n // 2], places[n // 2 :])


def complex_map(real: Tensor, imaginary: Tensor, adjacent: bool) -> Tensor:
    """Return, for numbers of shape (.., n/2), the matrices (.., n, n) that multiply each pair by its complex number."""
    n = 2 * real.shape[-1]
    first, second = rotary_pairs(n, adjacent)
    out = torch.zeros(*real.shape[:-1], n, n, dtype=torch.float64)
    out[..., first, first] = out[..., second, second] = real.double()
    out[..., first, second], out[..., second, first] = -imaginary.double(), imaginary.double()
    return out


def _pair_signs(shape: Shape, generator: torch.Generator) -> Tensor:
    half = _signs((*shape[:-1], shape[-1] // 2), generator)
    return torch.cat([half, half], -1)


def _is_orthogonal(mapped: Tensor, full: bool) -> bool:
    if not full:
        return bool((mapped.abs() == 1).all())
    off = mapped @ mapped.mT - torch.eye(mapped.shape[-1], dtype=torch.float64)
    return float(off.abs().max()) < ROUNDING


def _fixes_one(mapped: Tensor, full: bool) -> bool:
    return _is_orthogonal(mapped, full) and float(((mapped.sum(-1) if full else mapped) - 1).abs().max()) < ROUNDING


def _is_invertible(mapped: Tensor, full: bool) -> bool:
    if not full:
        return bool((mapped != 0).all())
    return bool((torch.linalg.matrix_rank(mapped) == mapped.shape[-1]).all())


def _is_paired(adjacent: bool) -> Callable[[Tensor, bool], bool]:
    def holds(mapped: Tensor, full: bool) -> bool:
        if mapped.shape[-1] % 2:
            return False
        first, second = rotary_pairs(mapped.shape[-1], adjacent)
        if not full:
            return bool((mapped[..., first] == mapped[..., second]).all() and (mapped != 0).all())
        numbers = [mapped[..., first, first], mapped[..., second, first]]
        off = (mapped - complex_map(numbers[0], numbers[1], adjacent)).abs().amax((-1, -2))
        size = (numbers[0].square() + numbers[1].square()).sqrt()
        return bool((size > 0).all() and (off <= ROUNDING * size.amax(-1)).all())

    return holds


def _is_pair_sign(mapped: Tensor, full: bool) -> bool:
    return not full and _is_orthogonal(mapped, False) and _is_paired(False)(mapped, False)


GROUPS: Mapping[str, Group] = {
    "permutation": Group(
        "units change places: a function of single units (GELU, a softmax over heads) commutes with nothing else",
        _nothing,
        lambda mapped, full: not full and bool((mapped == 1).all()),
    ),
    "none": Group(
        "nothing moves: every place has a meaning of its own",
        _nothing,
        lambda mapped, full: not full and bool((mapped == 1).all()),
    ),
    "signed": Group(
        "places and a sign for every unit: an odd function (tanh) of single units; RMSNorm, which takes no mean",
        _signs,
        lambda mapped, full: not full and bool((mapped.abs() == 1).all()),
    ),
    "sign": Group(
        "places and one sign for all units: LayerNorm(-x) = -LayerNorm(x) when its bias is turned and its gain is not",
        _one_sign,
        lambda mapped, full: not full and bool((mapped.abs() == 1).all() and (mapped == mapped.flatten()[0]).all()),
    ),
    "positive": Group(
        "places and a positive scale for every unit: relu(s x) = s relu(x)",
        _scales,
        lambda mapped, full: not full and bool((mapped > 0).all()),
    ),
    "real": Group(
        "places and a scale that is not zero: what multiplies a gate f(g) * u, or a norm's gain and bias",
        _real,
        lambda mapped, full: not full and bool((mapped != 0).all()),
    ),
    "linear": Group(
        "every invertible map: (G q)^T (G^-T k) = q^T k inside a head, and W_O G^-1 G W_V = W_O W_V",
        _linear,
        _is_invertible,
    ),
    "orthogonal": Group(
        "every rotation and reflection: RMSNorm without gain, which reads the length of x alone",
        _orthogonal,
        _is_orthogonal,
    ),
    "orthogonal_one": Group(
        "rotations that fix the ones vector: LayerNorm without gain, whose mean O must leave, O 1 = 1",
        _orthogonal_one,
        _fixes_one,
    ),
    "rotary": Group(
        "a complex number r e^{i theta} for each pair (i, i + n/2): what commutes with rotary positions in half layout",
        _paired(adjacent=False),
        _is_paired(adjacent=False),
    ),
    "rotary_adjacent": Group(
        "a complex number r e^{i theta} for each pair (2i, 2i + 1): the same where rotary pairs lie side by side",
        _paired(adjacent=True),
        _is_paired(adjacent=True),
    ),
    "rotary_sign": Group(
        "a sign for each pair (i, i + n/2): rotary positions behind a norm of queries and keys, whose gain fixes the rest",
        _pair_signs,
        _is_pair_sign,
    ),
}
