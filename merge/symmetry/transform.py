"""Transform: the general symmetry of a model: a permutation, then an invertible map on some of its axes.

The convention, obeyed everywhere: the permutation acts first (`merge.symmetry.permutation`), then the map G of each
axis that has one, in the *new* order of the units. Every tensor on the axis changes according to its role there, in
float64:

    role out   x -> G x             tensors that write the axis: rows of weights, biases, embeddings
    role in    y -> G^-T y          tensors that read it: columns of weights; y^T x stays what it was
    role =     g -> g               gains and gates, which multiply the units one by one: permuted only

A map is a diagonal (n,) or a matrix (n, n); on an axis inside blocks (blocks, n) or (blocks, n, n), where row h belongs
to block h of the *new* order. On grouped queries `(heads0 queries0 v0)` all query heads take the map of their key/value
head. `PermutationSpec.groups` states which maps an axis admits, and `check_transform` checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from merge.errors import SpecError, nearest
from merge.symmetry.groups import GROUPS, Group
from merge.symmetry.maps import apply_map, conjugated, inverse_transpose, inverted, is_matrix, product
from merge.symmetry.notation import TensorAxis
from merge.symmetry.permutation import Permutation, Shapes, apply_axes, identity, restrict
from merge.symmetry.permutation import compose as compose_permutations
from merge.symmetry.permutation import counts as sizes_of
from merge.symmetry.permutation import inverse as inverse_permutation
from merge.symmetry.spec import PermutationSpec


@dataclass(frozen=True)
class Transform:
    """A permutation, and the maps that act after it.

    Attributes:
        permutation: of every axis that may be permuted.
        maps: axis -> diagonal or matrices, float64; axes without one are permuted only.
    """

    permutation: Permutation
    maps: Mapping[str, Float[Tensor, ...]]

    @property
    def is_identity(self) -> bool:
        return self.permutation.is_identity and not self.maps

    @cached_property
    def duals(self) -> Mapping[str, Float[Tensor, ...]]:
        """Axis -> the inverse transpose of its map, computed once: many tensors read an axis."""
        return {
            axis: inverse_transpose(mapped, is_matrix(axis, mapped, self.permutation))
            for axis, mapped in self.maps.items()
        }


def axis_sizes(spec: PermutationSpec, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return axis -> (n,) or (blocks, n), for axes that may be permuted and for those that take only maps.

    Raises:
        SpecError: the spec does not fit the shapes.
    """
    sizes = spec.fit(shapes)
    for name, shape in shapes.items():
        for view in (view for along in spec.views(name, shape) for view in along if view.map_only):
            if sizes.setdefault(view.map_only, view.map_shape()) != view.map_shape():
                raise SpecError(
                    f'{spec.family} spec does not fit: {name} has shape {shape}, but axis "{view.map_only}" already has '
                    f"size {sizes[view.map_only]}."
                )
    return sizes


def identity_transform(spec: PermutationSpec, shapes: Shapes) -> Transform:
    """Return the transform that changes nothing, for tensors of these shapes by canonical name."""
    return Transform(identity(spec, shapes), {})


def restrict_transform(transform: Transform, axes: Iterable[str]) -> Transform:
    """Return the transform that acts on these axes alone."""
    kept = set(axes)
    maps = {axis: mapped for axis, mapped in transform.maps.items() if axis in kept}
    return Transform(restrict(transform.permutation, kept), maps)


def compose(t: Transform, u: Transform) -> Transform:
    """Return the transform that applies u first, then t.

    M_t P_t M_u P_u = (M_t P_t M_u P_t^-1) (P_t P_u): the map of u is conjugated by the permutation of t.
    """
    maps = {axis: conjugated(axis, mapped, t.permutation) for axis, mapped in u.maps.items()}
    for axis, mapped in t.maps.items():
        maps[axis] = product(axis, mapped, maps[axis], t.permutation) if axis in maps else mapped
    return Transform(compose_permutations(t.permutation, u.permutation), maps)


def inverse(transform: Transform) -> Transform:
    """Return the transform that undoes this one: (M P)^-1 = (P^-1 M^-1 P) P^-1."""
    undone = inverse_permutation(transform.permutation)
    maps = {axis: conjugated(axis, inverted(axis, mapped, undone), undone) for axis, mapped in transform.maps.items()}
    return Transform(undone, maps)


def apply_transform(spec: PermutationSpec, transform: Transform, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the transformed tensors of a model, which compute the same function. Inputs are not written to.

    Tensors that no map acts on are permuted bit for bit; the others are computed in float64 and cast back to their
    dtype.

    Raises:
        SpecError: a map does not fit a tensor, or a rotation meets gains that differ.
    """
    return {name: _moved(spec, transform, name, tensor) for name, tensor in tensors.items()}


class TensorsWhenRead(Mapping[str, Tensor]):
    """The tensors of a model, each computed anew whenever it is read: never are all of them in memory."""

    def __init__(
        self,
        names: Iterable[str],
        read: Callable[[str], Tensor],
        read_rows: Callable[[str, Tensor], Tensor] | None = None,
    ) -> None:
        """Args:
        read_rows: returns rows of a tensor by their numbers, without the others; None where the whole is computed first.
        """
        self._names, self._read, self._read_rows = dict.fromkeys(names), read, read_rows

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def rows(self, name: str, numbers: Int[Tensor, " rows"]) -> Tensor:
        """Return rows of a tensor."""
        return self[name][numbers] if self._read_rows is None else self._read_rows(name, numbers)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # that of Mapping would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def moved_when_read(spec: PermutationSpec, transform: Transform, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors that `apply_transform` returns, each computed when it is read."""
    if transform.is_identity:
        return tensors

    def rows(name: str, numbers: Int[Tensor, " rows"]) -> Tensor:
        first = spec.axes(name)[0]
        if first.span > 1 or map_axes(first):
            return _moved(spec, transform, name, tensors[name])[numbers]
        return _moved(spec, transform, name, rows_of(tensors, name, numbers))

    return TensorsWhenRead(tensors, lambda name: _moved(spec, transform, name, tensors[name]), rows)


def rows_of(tensors: Mapping[str, Tensor], name: str, numbers: Int[Tensor, " rows"]) -> Tensor:
    """Return rows of a tensor by their numbers; of one that is computed when it is read, those rows alone where that can be."""
    return tensors.rows(name, numbers) if isinstance(tensors, TensorsWhenRead) else tensors[name][numbers]


def _moved(spec: PermutationSpec, transform: Transform, name: str, tensor: Tensor) -> Tensor:
    try:
        return apply_transform_axes(spec.axes(name), transform, tensor)
    except SpecError as error:
        raise SpecError(f"{name}: {error}") from error


def apply_transform_axes(axes: Iterable[TensorAxis], transform: Transform, tensor: Tensor) -> Tensor:
    """Return one transformed tensor; also for an output of the model, whose axes a line of the spec names."""
    items = tuple(axes)
    permuted = apply_axes(items, transform.permutation, tensor)
    if not transform.maps:
        return permuted
    counts, out, dim = sizes_of(transform.permutation), permuted, 0
    for axis in items:
        if not transform.maps.keys().isdisjoint(map_axes(axis)):
            for view in axis.views(tuple(permuted.shape[dim : dim + axis.span]), counts):
                if blocks := transform.maps.keys() & set(view.names[:-1]):
                    raise SpecError(f"axis {min(blocks)!r} counts blocks, which can be permuted, but take no map.")
                if view.map_axis in transform.maps:
                    out = apply_map(
                        transform.maps[view.map_axis], view, out, dim, axis.span, transform.duals[view.map_axis]
                    )
        dim += axis.span
    return out if out is permuted else out.to(tensor.dtype)


def check_transform(spec: PermutationSpec, transform: Transform) -> None:
    """Raise SpecError unless every map is an element of the group that the spec gives to its axis."""
    p = transform.permutation
    axes = {name for line in spec.lines for axis in spec.axes(line) for name in map_axes(axis)}
    if unknown := sorted(p.outer.keys() - axes):
        raise SpecError(
            f"the transform has blocks of axis {unknown[0]!r}; {spec.family} has none.{nearest(unknown[0], axes)}"
        )
    for axis, mapped in transform.maps.items():
        if axis not in axes:
            raise SpecError(f"the transform has a map on axis {axis!r}; {spec.family} has none.{nearest(axis, axes)}")
        inside, name = axis in p.outer, spec.group(axis)
        shape = tuple(p.indices[axis].shape) if axis in p.indices else tuple(mapped.shape[: 2 if inside else 1])
        if inside and shape[:1] != tuple(p.indices[p.outer[axis]].shape):
            blocks = len(p.indices[p.outer[axis]])
            raise SpecError(f"the map of axis {axis!r} has {shape[0]} blocks, {p.outer[axis]!r} has {blocks}.")
        if not _group(spec, axis).contains(mapped, shape):
            raise SpecError(
                f"the map of axis {axis!r}, {_dtype_and_shape(mapped)} on {shape} units, is not in its group {name!r} "
                f"({GROUPS[name].description})."
            )
    for axis, index in p.indices.items():
        if spec.group(axis) == "none" and not bool((index == torch.arange(index.shape[-1])).all()):
            raise SpecError(
                f"the transform permutes axis {axis!r}, whose group is 'none' ({GROUPS['none'].description})."
            )


def _dtype_and_shape(mapped: Tensor) -> str:
    return f"{str(mapped.dtype).removeprefix('torch.')} {tuple(mapped.shape)}"


def map_axes(axis: TensorAxis) -> list[str]:
    """Return every name of an item under which maps may act."""
    return [*axis.axis_names(), *(name for name in (axis.map_only, *(part.map_only for part in axis.parts)) if name)]


def _group(spec: PermutationSpec, axis: str) -> Group:
    name = spec.group(axis)
    if name not in GROUPS:
        raise SpecError(f"the {spec.family} table gives axis {axis!r} the group {name!r}.{nearest(name, GROUPS)}")
    return GROUPS[name]


def folded_spec(spec: PermutationSpec) -> PermutationSpec:
    """Return the spec of the same model once every gain of its norms is exactly one (see `canonical.fold_norms`).

    The residual stream then admits every rotation (RMSNorm), or every one that fixes the ones vector (LayerNorm, which
    subtracts the mean). Nothing is folded here; applying a rotation to gains that differ is an error.

    Raises:
        SpecError: the gains of this architecture act on the stream itself (post-LN), or its head needs the stream's
            basis.
    """
    if not spec.folded:
        raise SpecError(
            f"the residual stream of {spec.family} with this head cannot be rotated: a norm's gain, or a function of each "
            "unit alone, acts on the stream itself. Permute it instead."
        )
    return replace(spec, groups={**spec.groups, **spec.folded}, folded={})
