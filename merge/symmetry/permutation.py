"""Permutation: for every named axis, an index array that states which old unit each new position takes.

The convention, obeyed everywhere: position i of the new axis takes unit p[i] of the old one, new = old[p].

    axis                    index arrays                              new position   takes old unit
    ffn                     p (n,)                                    i              p[i]
    (outer inner)           outer (b,), inner (b, n)                  (j, i)         (outer[j], inner[j, i])
    (outer middle inner)    outer (b,), middle (b, m), inner (b, n)   (j, q, i)      (outer[j], middle[j, q], inner[j, i])

The outer array orders the blocks; row j of an array inside them belongs to *new* block j.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from merge.errors import SpecError
from merge.symmetry.notation import TensorAxis, View
from merge.symmetry.spec import PermutationSpec

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Permutation:
    """Index arrays by axis name, and for each axis inside blocks the axis of those blocks.

    Attributes:
        indices: axis -> int64 array, shape (n,), or (blocks, n) for an inner axis.
        outer: inner axis -> its outer axis; also for axes that take only maps (`-turn0`).
    """

    indices: Mapping[str, Int[Tensor, ...]]
    outer: Mapping[str, str]

    def moved(self) -> dict[str, tuple[int, int]]:
        """Return axis -> (units that change position, units); inner axes count inside their blocks."""
        counts = {}
        for axis, index in self.indices.items():
            unmoved = torch.arange(index.shape[-1]).expand_as(index)
            counts[axis] = (int((index != unmoved).sum()), index.numel())
        return counts

    @property
    def is_identity(self) -> bool:
        return all(moved == 0 for moved, _ in self.moved().values())


def identity(spec: PermutationSpec, shapes: Shapes) -> Permutation:
    """Return the permutation that moves nothing, for tensors of these shapes by canonical name."""
    sizes = spec.fit(shapes)
    indices = {axis: torch.arange(size[-1]).expand(size).clone() for axis, size in sizes.items()}
    return Permutation(indices, {i: o for i, o in spec.outer.items() if o in sizes})


def random(spec: PermutationSpec, shapes: Shapes, generator: torch.Generator) -> Permutation:
    """Return a uniformly random permutation: of every axis, of the blocks and inside each of them."""
    unmoved = identity(spec, shapes)
    indices = {
        axis: torch.rand(index.shape, generator=generator, dtype=torch.float64).argsort(-1)
        for axis, index in unmoved.indices.items()
    }
    return Permutation(indices, unmoved.outer)


def restrict(permutation: Permutation, axes: Iterable[str]) -> Permutation:
    """Return the permutation that moves these axes alone."""
    kept = set(axes)
    indices = {
        axis: index if axis in kept else torch.arange(index.shape[-1]).expand_as(index).clone()
        for axis, index in permutation.indices.items()
    }
    return Permutation(indices, permutation.outer)


def compose(p: Permutation, q: Permutation) -> Permutation:
    """Return the permutation that applies q first, then p."""
    indices = {}
    for axis, index in p.indices.items():
        if axis in p.outer:
            blocks = p.indices[p.outer[axis]]
            indices[axis] = torch.gather(q.indices[axis][blocks], 1, index)
        else:
            indices[axis] = q.indices[axis][index]
    return Permutation(indices, p.outer)


def inverse(p: Permutation) -> Permutation:
    """Return the permutation that undoes p."""
    indices = {}
    for axis, index in p.indices.items():
        undone = index.argsort(-1)
        indices[axis] = undone[p.indices[p.outer[axis]].argsort()] if axis in p.outer else undone
    return Permutation(indices, p.outer)


def view_index(view: View, p: Permutation) -> Int[Tensor, ...]:
    """Return the old position that each unit of a view takes: offset + sum over levels of stride * index.

    Raises:
        SpecError: the permutation has no such axis, or one of another size.
    """
    source, index_shapes = torch.full(view.shape, view.offset), view.index_shapes()
    for level, (name, size) in enumerate(zip(view.names, view.shape, strict=True)):
        index = torch.arange(size) if name == "-" else _index(p, name, index_shapes[name])
        # An index inside blocks is (blocks, size): add dimensions for the levels between them and for those further
        # inside.
        inner = (1,) * (len(view.shape) - 1 - level)
        between = (1,) * (level - index.ndim + 1)
        source += view.strides[level] * index.reshape(*index.shape[:-1], *between, size, *inner)
    return source


def _index(p: Permutation, name: str, shape: tuple[int, ...]) -> Int[Tensor, ...]:
    if name not in p.indices:
        raise SpecError(f"the permutation has no axis {name!r}. Was it made for another architecture or size?")
    index = p.indices[name]
    if tuple(index.shape) != shape:
        raise SpecError(
            f"the permutation's axis {name!r} has shape {tuple(index.shape)}, the tensor's {shape}. Was it made for a model "
            "of another size?"
        )
    return index


def unit_positions(view: View) -> Int[Tensor, ...]:
    """Return the position along the axis of every unit of a view."""
    return view_index(dataclasses.replace(view, names=("-",) * len(view.names)), Permutation({}, {}))


def counts(p: Permutation) -> dict[str, int]:
    """Return axis -> number of its units: the blocks of an outer axis, the units in each block of what is inside."""
    return {axis: index.shape[-1] for axis, index in p.indices.items()}


def flat_index(axis: TensorAxis, p: Permutation, sizes: tuple[int, ...]) -> Int[Tensor, " n"] | None:
    """Return the index array along one item of a tensor's line; None where its order is fixed.

    Args:
        sizes: of the tensor's dimensions that the item stands for; the index of two of them is into both, flattened.
    Raises:
        SpecError: the permutation has no such axis, or one of another size.
    """
    if axis.fixed:
        return None
    if len(axis.names) == 1 and not axis.parts:  # most axes, of one name alone
        return _index(p, axis.names[0], sizes)
    names = axis.axis_names()
    unknown = [name for name in names if name not in p.indices]
    if unknown:
        raise SpecError(f"the permutation has no axis {unknown[0]!r}. Was it made for another architecture or size?")
    views = axis.views(sizes, {name: p.indices[name].shape[-1] for name in names})
    if len(views) == 1:
        return view_index(views[0], p).reshape(-1)
    index = torch.empty(math.prod(sizes), dtype=torch.int64)
    for view in views:
        index[unit_positions(view).reshape(-1)] = view_index(view, p).reshape(-1)
    return index


def apply_axes(axes: Iterable[TensorAxis], p: Permutation, tensor: Tensor) -> Tensor:
    """Return the tensor with every named axis permuted; the tensor itself where nothing moves."""
    dim = 0
    for axis in axes:
        tensor = take(tensor, dim, axis.span, flat_index(axis, p, tuple(tensor.shape[dim : dim + axis.span])))
        dim += axis.span
    return tensor


def take(tensor: Tensor, dim: int, span: int, index: Int[Tensor, " n"] | None) -> Tensor:
    """Return the tensor with `span` dimensions from `dim` on, flattened, in the order of an index array; None is no change."""
    if index is None or torch.equal(index, torch.arange(index.shape[0])):
        return tensor
    if span == 1:
        return tensor.index_select(dim, index)
    flat = tensor.flatten(dim, dim + span - 1).index_select(dim, index)
    return flat.unflatten(dim, tensor.shape[dim : dim + span])


def apply(spec: PermutationSpec, p: Permutation, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the permuted tensors of a model, which compute the same function. Inputs are not written to."""
    return {name: apply_axes(spec.axes(name), p, tensor) for name, tensor in tensors.items()}
