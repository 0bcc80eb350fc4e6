"""Maps: the linear parts of a transform, and what they do: to one another, behind a permutation, along a tensor's axis.

A map is a diagonal (n,) or a matrix (n, n), or one for every block: (blocks, n) or (blocks, n, n).
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


def full(axis: str, mapped: Map, p: Permutation) -> bool:
    """Return whether an axis's map is matrices, not diagonals; p says whether the axis lies in blocks."""
    return is_full(mapped, (0, 0) if axis in p.outer else (0,))


def carried(axis: str, mapped: Map, p: Permutation) -> Map:
    """Return P M P^-1, in whose entry (i, j) stand the units p[i] and p[j]."""
    matrices = full(axis, mapped, p)
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
    """Return left after right; a diagonal only if both are."""
    matrices = full(axis, left, p), full(axis, right, p)
    if not any(matrices):
        return left * right
    if not matrices[1]:
        return left * right[..., None, :]
    return left @ right if matrices[0] else left[..., :, None] * right


def inverted(axis: str, mapped: Map, p: Permutation) -> Map:
    """Return the map that undoes this one."""
    return torch.linalg.inv(mapped) if full(axis, mapped, p) else 1 / mapped


def dual(mapped: Map, matrices: bool) -> Map:
    """Return the inverse transpose: what acts on all that reads the axis."""
    return torch.linalg.inv(mapped).mT if matrices else 1 / mapped


def act(mapped: Map, view: View, tensor: Tensor, dim: int, span: int, inverse: Map | None = None) -> Tensor:
    """Return the tensor with a map on the units of a view, which lie along `span` axes from `dim` on; in float64.

    Role `out` takes the map, `in` its inverse transpose; with role `=` the tensor is given back as it is.

    Args:
        inverse: the inverse transpose, where it is known.
    Raises:
        SpecError: the map is of another size, the tensor holds integers, or a rotation meets factors that differ.
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
    where = unit_positions(view).reshape(-1)
    if view.role == "=":
        if matrices:
            _check_constant(flat[..., where], view.map_axis)
        return tensor
    units = flat[..., where].double()
    out = flat.to(torch.float64, copy=True)
    if view.role == "in":
        mapped = dual(mapped, matrices) if inverse is None else inverse
    out[..., where] = _mapped(mapped, matrices, view, units)
    return out.movedim(-1, dim).unflatten(dim, tensor.shape[dim : dim + span])


def _mapped(mapped: Map, matrices: bool, view: View, units: Float[Tensor, "... units"]) -> Float[Tensor, "... units"]:
    """Return the units under the map; levels between the blocks and the innermost take their block's."""
    n = view.shape[-1]
    blocks = view.shape[0] if len(view.shape) > 1 else 1
    between = math.prod(view.shape[1:-1])
    split = units.reshape(-1, blocks, between, n)
    if matrices:
        # Contiguous, or the last bits would depend on how the map lies in memory: a loaded one acts as the saved one.
        new = torch.einsum("rbqn,bmn->rbqm", split, mapped.reshape(blocks, n, n).contiguous())
    else:
        new = split * mapped.reshape(blocks, 1, n)
    return new.reshape(units.shape)


def _check_constant(units: Tensor, axis: str) -> None:
    """Stop where a rotation meets a gain: diag(g) commutes with it only if all of g are equal."""
    if not bool((units == units[..., :1]).all()):
        raise SpecError(
            f"it multiplies the units of axis {axis!r} one by one, by factors that differ, so the axis cannot be rotated. "
            "Fold the gains of the norms into what reads them first."
        )
