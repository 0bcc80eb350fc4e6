"""Balance: rescale the two factors of each head and unit to equal size, without a change of the model's function.

The outputs depend only on a head's W_Q^T W_K and W_O W_V, and on the product of what a gated unit reads and writes. How the
factors share the size of their product is arbitrary and differs between models. Balanced, both have the same size:

    linear     out^T into = U S V^T  ->  S^.5 U^T and S^.5 V^T     every head
    rotary     |out| = |into|                                      every rotary pair
    scales     |out| = |into|                                      every unit

What is left of these groups after that preserves sizes: rotations, phases and signs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.solvers.procrustes import balancing_whole
from merge.alignment.solvers.unit_rows import unit_rows
from merge.symmetry.groups import Shape, complex_map, rotary_pairs
from merge.symmetry.permutation import Permutation, unit_positions
from merge.symmetry.spec import PermutationSpec
from merge.symmetry.transform import Transform, axis_sizes, map_axes

# A head with a singular value below this share of its largest is left as it is, and so is a unit whose factors differ by
# more: a map that balanced them would cost digits.
MIN_SINGULAR_RATIO = 1e-4

Rows = Float[Tensor, "blocks n columns"]


def balance(
    spec: PermutationSpec, tensors: Mapping[str, Tensor], groups: Mapping[str, str], unmoved: Permutation
) -> Transform:
    """Return the transform that balances a model on these axes; those whose group preserves sizes stay as they are.

    Args:
        tensors: those on the axes, canonical, so that biases without effect on the outputs are zero.
        groups: axis -> group that acts on it.
        unmoved: the identity of the whole model.
    """
    sizes = axis_sizes(spec, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    stretched = [axis for axis, group in groups.items() if group in BALANCES]
    rows = factor_rows(spec, tensors, stretched)
    maps = {}
    for axis in stretched:
        out, into = (joined_rows(arrays, sizes[axis]) for arrays in rows[axis])
        if out is not None and into is not None:
            maps[axis] = BALANCES[groups[axis]](out, into).reshape(_map_shape(groups[axis], sizes[axis]))
    return Transform(unmoved, maps)


def factor_rows(
    spec: PermutationSpec, tensors: Mapping[str, Tensor], axes: Collection[str]
) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Return axis -> (arrays of role out, of role in), float64, each (levels..., columns)."""
    factors: dict[str, tuple[list[Tensor], list[Tensor]]] = {axis: ([], []) for axis in axes}
    for name in tensors:
        items = spec.axes(name)
        if factors.keys().isdisjoint(word for axis in items for word in map_axes(axis)):
            continue
        tensor, dim = tensors[name], 0
        for axis, along in zip(items, spec.views(name, tuple(tensor.shape)), strict=True):
            for view in along:
                if view.map_axis in factors and view.role != "=":
                    units = unit_rows(tensor, dim, axis.span, unit_positions(view)).double().unflatten(0, view.shape)
                    factors[view.map_axis][view.role == "in"].append(units)
            dim += axis.span
    return factors


def joined_rows(arrays: list[Tensor], shape: Shape) -> Rows | None:
    """Return all columns of every unit joined, those of a level between the blocks and the units too; None without arrays."""
    if not arrays:
        return None
    flat = [x.movedim(1, 2).flatten(2) if x.ndim == 4 else x for x in arrays]
    blocks = shape[0] if len(shape) > 1 else 1
    return torch.cat([x.reshape(blocks, shape[-1], -1) for x in flat], 2)


def _map_shape(group: str, shape: Shape) -> Shape:
    return shape if group in ("positive", "real") else (*shape, shape[-1])


def _linear(out: Rows, into: Rows) -> Float[Tensor, "blocks n n"]:
    return balancing_whole(out, into, MIN_SINGULAR_RATIO)


def _scales(out: Rows, into: Rows) -> Float[Tensor, "blocks n"]:
    return _ratio(into.square().sum(2), out.square().sum(2))


def _ratio(squares_in: Tensor, squares_out: Tensor) -> Tensor:
    """Return (|into| / |out|)^.5, and 1 where one of them is zero or negligible next to the other."""
    whole = torch.minimum(squares_in, squares_out) > MIN_SINGULAR_RATIO**2 * torch.maximum(squares_in, squares_out)
    return torch.where(whole, squares_in / torch.where(whole, squares_out, 1.0), 1.0) ** 0.25


def _rotary(adjacent: bool) -> Callable[[Rows, Rows], Float[Tensor, "blocks n n"]]:
    def maps(out: Rows, into: Rows) -> Float[Tensor, "blocks n n"]:
        first, second = rotary_pairs(out.shape[1], adjacent)
        squares = [x.square().sum(2) for x in (into, out)]
        size = _ratio(*(x[:, first] + x[:, second] for x in squares))
        return complex_map(size, torch.zeros_like(size), adjacent)

    return maps


BALANCES: Mapping[str, Callable[[Rows, Rows], Tensor]] = {
    "linear": _linear,
    "positive": _scales,
    "real": _scales,
    "rotary": _rotary(adjacent=False),
    "rotary_adjacent": _rotary(adjacent=True),
}
