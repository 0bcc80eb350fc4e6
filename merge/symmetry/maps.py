"""Maps, the linear parts of a transform: how they are combined, moved through a permutation, and applied to a tensor.

A map is a diagonal (n,) or a matrix (n, n); on an axis inside blocks there is one for every block: (blocks, n) or
(blocks, n, n). All are float64.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from merge.errors import SpecError
from merge.symmetry.groups import is_full
from merge.symmetry.notation import View
from merge.symmetry.permutation import Permutation, unit_positions

Map = Float[Tensor, "..."]


def is_matrix(axis: str, mapped: Map, p: Permutation) -> bool:
    """Return whether the map of an axis is matrices, not diagonals; p tells whether the axis is inside blocks."""
    return is_full(mapped, (0, 0) if axis in p.outer else (0,))


def conjugated(axis: str, mapped: Map, p: Permutation) -> Map:
    """Return P M P^-1, the map M after the units are permuted: its entry (i, j) is M's entry (p[i], p[j])."""
    matrices = is_matrix(axis, mapped, p)
    if axis in p.outer:
        mapped = mapped[p.indices[p.outer[axis]]]
    if axis not in p.indices:
        return mapped
    index = p.indices[axis]
    if not matrices:
        return mapped.gather(-1, index)
    rows = mapped.gather(-2, index[..., :, None].expand(mapped.shape))
    return rows.gather(-1, index[..., None, :].expand(mapped.shape))


def product(axis: str, left: Map, right: Map, p: Permutation) -> Map:
    """Return the map that applies `right` first, then `left`; a diagonal where both are."""
    matrices = is_matrix(axis, left, p), is_matrix(axis, right, p)
    if not any(matrices):
        return left * right
    if not matrices[1]:
        return left * right[..., None, :]
    return left @ right if matrices[0] else left[..., :, None] * right


def inverted(axis: str, mapped: Map, p: Permutation) -> Map:
    """Return the map that undoes this one."""
    return torch.linalg.inv(mapped) if is_matrix(axis, mapped, p) else 1 / mapped


def inverse_transpose(mapped: Map, matrices: bool) -> Map:
    """Return G^-T, the map of the tensors that read the axis: (G^-T y)^T (G x) = y^T x."""
    return torch.linalg.inv(mapped).mT if matrices else 1 / mapped


def apply_map(mapped: Map, view: View, tensor: Tensor, dim: int, span: int, dual: Map | None = None) -> Tensor:
    """Return the tensor with a map applied to the units of a view along `span` dimensions from `dim` on; in float64.

    Role `out` takes the map, `in` its inverse transpose; with role `=` the tensor is returned unchanged.

    Args:
        dual: the inverse transpose, if it is computed already.
    Raises:
        SpecError: the map has another size, the tensor holds integers, or a rotation meets gains that differ.
    """
    shape, matrices = view.map_shape(), is_full(mapped, view.map_shape())
    if tuple(mapped.shape) != ((*shape, shape[-1]) if matrices else shape):
        raise SpecError(
            f"the map of axis {view.map_axis!r} has shape {tuple(mapped.shape)}, but the axis has {shape} units. Was it made "
            "for a model of another size?"
        )
    if not tensor.is_floating_point():
        raise SpecError(
            f"axis {view.map_axis!r} has a map, but the tensor holds {tensor.dtype}, which it cannot act on."
        )
    flat = tensor.flatten(dim, dim + span - 1).movedim(dim, -1)
    positions = unit_positions(view).reshape(-1)
    if view.role == "=":
        if matrices:
            _check_equal_gains(flat[..., positions], view.map_axis)
        return tensor
    units = flat[..., positions].double()
    out = flat.to(torch.float64, copy=True)
    if view.role == "in":
        mapped = inverse_transpose(mapped, matrices) if dual is None else dual
    # Contiguous, or the last bits would depend on the memory layout: a map that was loaded must act as the one saved.
    out[..., positions] = map_units(mapped.contiguous(), view.shape, units)
    return out.movedim(-1, dim).unflatten(dim, tensor.shape[dim : dim + span])


def map_units(mapped: Map, shape: tuple[int, ...], units: Float[Tensor, "... units"]) -> Float[Tensor, "... units"]:
    """Return the units after the map; the query heads of one key/value head all take the map of that head.

    Args:
        shape: units at each level of their view, blocks first.
    """
    n = shape[-1]
    blocks = shape[0] if len(shape) > 1 else 1
    queries = math.prod(shape[1:-1])
    split = units.reshape(-1, blocks, queries, n)
    if is_full(mapped, shape if len(shape) == 1 else (blocks, n)):
        new = torch.einsum("rbqn,bmn->rbqm", split, mapped.reshape(blocks, n, n))
    else:
        new = split * mapped.reshape(blocks, 1, n)
    return new.reshape(units.shape)


def _check_equal_gains(units: Tensor, axis: str) -> None:
    """Stop where a rotation meets a gain: diag(g) commutes with every rotation only if all entries of g are equal."""
    if not bool((units == units[..., :1]).all()):
        raise SpecError(
            f"it multiplies the units of axis {axis!r} one by one, by factors that differ, so the axis cannot be rotated. "
            "Fold the gains of the norms into what reads them first."
        )
