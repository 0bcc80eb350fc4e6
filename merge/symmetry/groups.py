"""The groups: which maps, besides permutations, may act on an axis without changing the function of the model.

An element of a group first permutes the units of an axis, then applies a map. On an axis of shape (n,) a map is a
diagonal (n,) or a matrix (n, n); on an axis inside blocks, of shape (blocks, n), there is one for every block: (blocks,
n) or (blocks, n, n). All maps are float64.

What the model computes on an axis decides which group acts there. A function of each unit alone, such as an activation,
leaves only the maps that commute with it; where nothing but a matrix product lies between the weights that write the
axis and those that read it, every invertible map is free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]
# A map, and whether it is matrices (else diagonals) -> whether it is an element.
Test = Callable[[Tensor, bool], bool]

# How far O O^T may be from the identity and O 1 from 1: the rounding of a float64 decomposition.
ROUNDING = 1e-8


@dataclass(frozen=True)
class Group:
    """A group that acts on an axis.

    Attributes:
        description: its maps, and what leaves them free, in one line.
        is_element: whether a map is an element, given that it is finite, float64 and of the right shape.
    """

    description: str
    is_element: Test

    def contains(self, mapped: Tensor, shape: Shape) -> bool:
        """Return whether a map on an axis of this shape is an element of the group."""
        full = is_full(mapped, shape)
        if tuple(mapped.shape) != ((*shape, shape[-1]) if full else shape) or mapped.dtype != torch.float64:
            return False
        return bool(mapped.isfinite().all()) and self.is_element(mapped, full)


def is_full(mapped: Tensor, shape: Shape) -> bool:
    """Return whether a map on an axis of this shape is matrices, not diagonals."""
    return mapped.ndim == len(shape) + 1


def rotary_pairs(n: int, adjacent: bool) -> tuple[Tensor, Tensor]:
    """Return the first and the second position of every rotary pair: (2i, 2i + 1) if adjacent, else (i, i + n/2)."""
    positions = torch.arange(n)
    return (positions[0::2], positions[1::2]) if adjacent else (positions[: n // 2], positions[n // 2 :])


def complex_map(real: Tensor, imaginary: Tensor, adjacent: bool) -> Tensor:
    """Return the matrices that multiply each rotary pair by a complex number.

    Args:
        real, imaginary: parts of the numbers, shape (..., n/2).
    Returns:
        Matrices of shape (..., n, n), float64.
    """
    n = 2 * real.shape[-1]
    first, second = rotary_pairs(n, adjacent)
    out = torch.zeros(*real.shape[:-1], n, n, dtype=torch.float64)
    out[..., first, first] = out[..., second, second] = real.double()
    out[..., first, second], out[..., second, first] = -imaginary.double(), imaginary.double()
    return out


def _is_identity(mapped: Tensor, full: bool) -> bool:
    return not full and bool((mapped == 1).all())


def _is_signs(mapped: Tensor, full: bool) -> bool:
    return not full and bool((mapped.abs() == 1).all())


def _is_one_sign(mapped: Tensor, full: bool) -> bool:
    return _is_signs(mapped, full) and bool((mapped == mapped.flatten()[0]).all())


def _is_positive(mapped: Tensor, full: bool) -> bool:
    return not full and bool((mapped > 0).all())


def _is_nonzero(mapped: Tensor, full: bool) -> bool:
    return not full and bool((mapped != 0).all())


def _is_invertible(mapped: Tensor, full: bool) -> bool:
    if not full:
        return _is_nonzero(mapped, full)
    return bool((torch.linalg.matrix_rank(mapped) == mapped.shape[-1]).all())


def _is_orthogonal(mapped: Tensor, full: bool) -> bool:
    if not full:
        return _is_signs(mapped, full)
    residual = mapped @ mapped.mT - torch.eye(mapped.shape[-1], dtype=torch.float64)
    return float(residual.abs().max()) < ROUNDING


def _is_orthogonal_fixing_ones(mapped: Tensor, full: bool) -> bool:
    row_sums = mapped.sum(-1) if full else mapped
    return _is_orthogonal(mapped, full) and float((row_sums - 1).abs().max()) < ROUNDING


def _is_complex(adjacent: bool) -> Test:
    """Return the test for maps that multiply each rotary pair by a complex number that is not zero."""

    def is_element(mapped: Tensor, full: bool) -> bool:
        if mapped.shape[-1] % 2:
            return False
        first, second = rotary_pairs(mapped.shape[-1], adjacent)
        if not full:
            return bool((mapped[..., first] == mapped[..., second]).all() and (mapped != 0).all())
        real, imaginary = mapped[..., first, first], mapped[..., second, first]
        residual = (mapped - complex_map(real, imaginary, adjacent)).abs().amax((-1, -2))
        size = (real.square() + imaginary.square()).sqrt()
        return bool((size > 0).all() and (residual <= ROUNDING * size.amax(-1)).all())

    return is_element


def _is_pair_signs(mapped: Tensor, full: bool) -> bool:
    return _is_signs(mapped, full) and _is_complex(adjacent=False)(mapped, False)


GROUPS: Mapping[str, Group] = {
    "permutation": Group(
        "no map: a function of each unit alone (GELU, a softmax in every head) commutes with permutations only",
        _is_identity,
    ),
    "none": Group(
        "nothing moves: every position has a meaning of its own",
        _is_identity,
    ),
    "signed": Group(
        "a sign for every unit: an odd activation, tanh(-x) = -tanh(x); RMSNorm, which subtracts no mean",
        _is_signs,
    ),
    "sign": Group(
        "one sign for all units: LayerNorm(-x) = -LayerNorm(x) when its bias changes sign and its gain does not",
        _is_one_sign,
    ),
    "positive": Group(
        "a positive scale for every unit: relu(s x) = s relu(x) for s > 0",
        _is_positive,
    ),
    "real": Group(
        "a scale that is not zero for every unit: what multiplies a gate, f(g) * (s u) = s f(g) * u; a norm's gain and bias",
        _is_nonzero,
    ),
    "linear": Group(
        "every invertible map: (G q)^T (G^-T k) = q^T k inside a head, and W_O G^-1 G W_V = W_O W_V",
        _is_invertible,
    ),
    "orthogonal": Group(
        "every rotation and reflection: RMSNorm without gain depends on the length of x alone, which they keep",
        _is_orthogonal,
    ),
    "orthogonal_one": Group(
        "rotations that fix the ones vector, O 1 = 1: LayerNorm without gain, which subtracts the mean of the units",
        _is_orthogonal_fixing_ones,
    ),
    "rotary": Group(
        "a complex number r e^{i theta} for each pair (i, i + n/2): what commutes with rotary positions in half layout",
        _is_complex(adjacent=False),
    ),
    "rotary_adjacent": Group(
        "a complex number r e^{i theta} for each pair (2i, 2i + 1): the same where the two of a pair are neighbours",
        _is_complex(adjacent=True),
    ),
    "rotary_sign": Group(
        "a sign for each pair (i, i + n/2): rotary positions after a norm of queries and keys, whose gain fixes the rest",
        _is_pair_signs,
    ),
}
