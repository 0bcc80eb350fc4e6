"""Permutation: for every named axis, which old unit each new place takes.

The one convention: place `i` of the new axis takes unit `p[i]` of the old one. On a split axis `(outer inner)` the
outer array orders the blocks and row `j` of the inner array orders the units inside *new* block `j`:
new block `j`, place `i` takes unit `inner[j, i]` of old block `outer[j]`. On three levels `(outer middle inner)` the middle
and the inner array both have a row for each new block of the outermost: place `(j, q, i)` takes unit
`(outer[j], middle[j, q], inner[j, i])`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from merge.errors import SpecError
from merge.symmetry.notation import TensorAxis, View
from merge.symmetry.spec import PermutationSpec

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Permutation:
    """Index arrays by axis name, and for each inner axis the outer axis whose blocks it orders.

    Attributes:
        indices: axis -> int64 array, shape (n,), or (blocks, n) for an inner axis.
        outer: inner axis -> its outer axis; also of orders that may not move but have a name (`-turn0`).
    """

    indices: Mapping[str, Int[Tensor, ...]]
    outer: Mapping[str, str]

    def moved(self) -> dict[str, tuple[int, int]]:
        """Return axis -> (units that change place, units); inner axes count inside their blocks."""
        out = {}
        for axis, index in self.indices.items():
            rest = torch.arange(index.shape[-1]).expand_as(index)
            out[axis] = (int((index != rest).sum()), index.numel())
        return out

    @property
    def is_identity(self) -> bool:
        return all(moved == 0 for moved, _ in self.moved().values())


def identity(spec: PermutationSpec, shapes: Shapes) -> Permutation:
    """Return the permutation that moves nothing; `shapes` are the tensors' shapes by canonical name."""
    sizes = spec.fit(shapes)
    indices = {axis: torch.arange(size[-1]).expand(size).clone() for axis, size in sizes.items()}
    return Permutation(indices, {i: o for i, o in spec.outer.items() if o in sizes})


def random(spec: PermutationSpec, shapes: Shapes, generator: torch.Generator) -> Permutation:
    """Return a uniformly random element: every axis, every block and every order inside a block."""
    still = identity(spec, shapes)
    indices = {
        axis: torch.rand(index.shape, generator=generator, dtype=torch.float64).argsort(-1)
        for axis, index in still.indices.items()
    }
    return Permutation(indices, still.outer)


def restrict(permutation: Permutation, axes: Iterable[str]) -> Permutation:
    """Return the permutation that moves only these axes and leaves the others where they are."""
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
    """Return, for every unit of a view, the place of the old axis it takes: offset + sum over levels of stride * index.

    Raises:
        SpecError: the permutation has no such axis, or one of another size.
    """
    source = torch.full(view.shape, view.offset)
    for level, (name, size) in enumerate(zip(view.names, view.shape, strict=True)):
        index = torch.arange(size) if name == "-" else _index(p, name, view.index_shapes()[name])
        behind = (1,) * (len(view.shape) - 1 - level)
        between = (1,) * (level - index.ndim + 1)
        source += view.strides[level] * index.reshape(*index.shape[:-1], *between, size, *behind)
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
    """Return the place along the axis of every unit of a view."""
    return view_index(dataclasses.replace(view, names=("-",) * len(view.names)), Permutation({}, {}))


def counts(p: Permutation) -> dict[str, int]:
    """Return axis -> number of its units: the blocks of an outer axis, the units in each block of what is inside."""
    return {axis: index.shape[-1] for axis, index in p.indices.items()}


def flat_index(axis: TensorAxis, p: Permutation, sizes: tuple[int, ...]) -> Int[Tensor, " n"] | None:
    """Return the index array along one item of a tensor's line; None when it may not move.

    Args:
        sizes: of the tensor's axes the item stands for; for two of them, the index is into both laid flat.
    Raises:
        SpecError: the permutation has no such axis, or one of another size.
    """
    if axis.fixed:
        return None
    unknown = [name for name in axis.axis_names() if name not in p.indices]
    if unknown:
        raise SpecError(f"the permutation has no axis {unknown[0]!r}. Was it made for another architecture or size?")
    views = axis.views(sizes, counts(p))
    if len(views) == 1:
        return view_index(views[0], p).reshape(-1)
    index = torch.empty(math.prod(sizes), dtype=torch.int64)
    for view in views:
        index[unit_positions(view).reshape(-1)] = view_index(view, p).reshape(-1)
    return index


def apply_axes(axes: Iterable[TensorAxis], p: Permutation, tensor: Tensor) -> Tensor:
    """Return the tensor with every named axis permuted; a copy unless nothing moves."""
    dim = 0
    for axis in axes:
        tensor = take(tensor, dim, axis.span, flat_index(axis, p, tuple(tensor.shape[dim : dim + axis.span])))
        dim += axis.span
    return tensor


def take(tensor: Tensor, dim: int, span: int, index: Int[Tensor, " n"] | None) -> Tensor:
    """Return the tensor with `span` axes from `dim` on, laid flat, in the order of an index array; None leaves it."""
    if index is None or torch.equal(index, torch.arange(len(index))):
        return tensor
    flat = tensor.flatten(dim, dim + span - 1).index_select(dim, index)
    return flat.unflatten(dim, tensor.shape[dim : dim + span])


def apply(spec: PermutationSpec, p: Permutation, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the re-based tensors: the same function in another basis. Inputs are not written to."""
    return {name: apply_axes(spec.axes(name), p, tensor) for name, tensor in tensors.items()}


def save(p: Permutation, path: Path) -> None:
    """Write index arrays as safetensors; the outer axes go into the file's metadata."""
    from safetensors import torch as safetensors

    # One entry only: safetensors writes several in an order that changes from call to call.
    metadata = {"outer": json.dumps(dict(sorted(p.outer.items())))}
    # save_file would make the file readable by its owner only.
    path.write_bytes(safetensors.save({axis: i.contiguous() for axis, i in p.indices.items()}, metadata=metadata))


def load(path: Path) -> Permutation:
    """Read what `save` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        outer = json.loads((file.metadata() or {}).get("outer", "{}"))
        indices = {axis: file.get_tensor(axis) for axis in file.keys()}  # noqa: SIM118 - no mapping, has no __iter__
    return Permutation(indices, outer)
