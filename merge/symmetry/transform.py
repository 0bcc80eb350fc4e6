"""Transform: the general element of a model's symmetries; a permutation and, behind it, an invertible map on some axes.

The one convention: the permutation acts first (as `merge.symmetry.permutation` says), then the map of every axis that has one, in
the new order. On x along an axis, in float64:

    role out   x -> G x             rows that write the axis, biases, embeddings
    role in    x -> G^-T x          columns that read it: y^T x is what it was
    role =     x -> x               gains and gates: permuted only

A map is a diagonal (n,) or a matrix (n, n); on an axis inside blocks (blocks, n) or (blocks, n, n), block h in the *new*
order. Grouped queries `(heads0 queries0 v0)` take the map of their key/value head, every one of them. What is in the group
of an axis is said by its table (`PermutationSpec.groups`) and checked by `check_transform`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from merge.errors import SpecError, nearest
from merge.symmetry.groups import GROUPS, Group
from merge.symmetry.maps import act, carried, dual, full, inverted, product
from merge.symmetry.notation import TensorAxis
from merge.symmetry.permutation import Permutation, Shapes, apply_axes, identity, random, restrict
from merge.symmetry.permutation import compose as compose_permutations
from merge.symmetry.permutation import counts as sizes_of
from merge.symmetry.permutation import inverse as inverse_permutation
from merge.symmetry.spec import PermutationSpec


@dataclass(frozen=True)
class Transform:
    """A permutation, and the maps that act behind it.

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
        """Axis -> the inverse transpose of its map: many tensors read an axis."""
        return {axis: dual(mapped, full(axis, mapped, self.permutation)) for axis, mapped in self.maps.items()}


def axis_sizes(spec: PermutationSpec, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return axis -> (n,) or (blocks, n), for axes that may be permuted and for those that take maps alone."""
    found = spec.fit(shapes)
    for name, shape in shapes.items():
        for view in (view for along in spec.views(name, shape) for view in along if view.map_only):
            if found.setdefault(view.map_only, view.map_shape()) != view.map_shape():
                raise SpecError(
                    f'{spec.family} spec does not fit: {name} has shape {shape}, but axis "{view.map_only}" already has '
                    f"size {found[view.map_only]}."
                )
    return found


def identity_transform(spec: PermutationSpec, shapes: Shapes) -> Transform:
    """Return the transform that changes nothing; `shapes` are the tensors' shapes by canonical name."""
    return Transform(identity(spec, shapes), {})


def random_transform(spec: PermutationSpec, shapes: Shapes, generator: torch.Generator) -> Transform:
    """Return a random, well-conditioned element: every axis permuted, and a map of its group on each that has one."""
    permutation, maps = random(spec, shapes, generator), {}
    for axis, shape in axis_sizes(spec, shapes).items():
        drawn = _group(spec, axis).random(shape, generator)
        if drawn is not None:
            maps[axis] = drawn
    return Transform(_still_where_none(spec, permutation), maps)


def _still_where_none(spec: PermutationSpec, p: Permutation) -> Permutation:
    return restrict(p, [axis for axis in p.indices if spec.group(axis) != "none"])


def restrict_transform(transform: Transform, axes: Iterable[str]) -> Transform:
    """Return the transform that acts on these axes alone."""
    kept = set(axes)
    maps = {axis: mapped for axis, mapped in transform.maps.items() if axis in kept}
    return Transform(restrict(transform.permutation, kept), maps)


def compose(t: Transform, u: Transform) -> Transform:
    """Return the transform that applies u first, then t.

    M_t P_t M_u P_u = (M_t P_t M_u P_t^-1) (P_t P_u): the first map is carried through the second permutation.
    """
    maps = {axis: carried(axis, mapped, t.permutation) for axis, mapped in u.maps.items()}
    for axis, mapped in t.maps.items():
        maps[axis] = product(axis, mapped, maps[axis], t.permutation) if axis in maps else mapped
    return Transform(compose_permutations(t.permutation, u.permutation), maps)


def inverse(transform: Transform) -> Transform:
    """Return the transform that undoes this one: (M P)^-1 = (P^-1 M^-1 P) P^-1."""
    back = inverse_permutation(transform.permutation)
    maps = {axis: carried(axis, inverted(axis, mapped, back), back) for axis, mapped in transform.maps.items()}
    return Transform(back, maps)


def apply_transform(spec: PermutationSpec, transform: Transform, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in the transform's basis: the same function. Inputs are not written to.

    What no map acts on is moved bit for bit; the others are computed in float64 and cast back, each to its own dtype.

    Raises:
        SpecError: a map does not fit a tensor, or a rotation meets a gain that is not constant.
    """
    out = {}
    for name, tensor in tensors.items():
        try:
            out[name] = apply_transform_axes(spec.axes(name), transform, tensor)
        except SpecError as error:
            raise SpecError(f"{name}: {error}") from error
    return out


def apply_transform_axes(axes: Iterable[TensorAxis], transform: Transform, tensor: Tensor) -> Tensor:
    """Return one tensor, or an output of the model, in the transform's basis."""
    line = tuple(axes)
    moved = apply_axes(line, transform.permutation, tensor)
    if not transform.maps:
        return moved
    counts, out, dim = sizes_of(transform.permutation), moved, 0
    for axis in line:
        if not transform.maps.keys().isdisjoint(_acting(axis)):
            for view in axis.views(tuple(moved.shape[dim : dim + axis.span]), counts):
                if blocks := transform.maps.keys() & set(view.names[:-1]):
                    raise SpecError(f"axis {min(blocks)!r} counts blocks, which may change places, but take no map.")
                if view.map_axis in transform.maps:
                    out = act(transform.maps[view.map_axis], view, out, dim, axis.span, transform.duals[view.map_axis])
        dim += axis.span
    return out if out is moved else out.to(tensor.dtype)


def check_transform(spec: PermutationSpec, transform: Transform) -> None:
    """Raise SpecError unless every map is an element of the group that the spec gives to its axis."""
    p = transform.permutation
    known = {name for line in spec.lines for axis in spec.axes(line) for name in _acting(axis)}
    if strange := sorted(p.outer.keys() - known):
        raise SpecError(
            f"the transform has blocks of axis {strange[0]!r}; {spec.family} has none.{nearest(strange[0], known)}"
        )
    for axis, mapped in transform.maps.items():
        if axis not in known:
            raise SpecError(f"the transform has a map on axis {axis!r}; {spec.family} has none.{nearest(axis, known)}")
        inside, name = axis in p.outer, spec.group(axis)
        shape = tuple(p.indices[axis].shape) if axis in p.indices else tuple(mapped.shape[: 2 if inside else 1])
        if inside and shape[:1] != tuple(p.indices[p.outer[axis]].shape):
            blocks = len(p.indices[p.outer[axis]])
            raise SpecError(f"the map of axis {axis!r} has {shape[0]} blocks, {p.outer[axis]!r} has {blocks}.")
        if not _group(spec, axis).contains(mapped, shape):
            raise SpecError(
                f"the map of axis {axis!r}, {_said(mapped)} on {shape} units, is not in its group {name!r} "
                f"({GROUPS[name].says})."
            )
    for axis, index in p.indices.items():
        if spec.group(axis) == "none" and not bool((index == torch.arange(index.shape[-1])).all()):
            raise SpecError(f"the transform permutes axis {axis!r}, whose group is 'none' ({GROUPS['none'].says}).")


def _said(mapped: Tensor) -> str:
    return f"{str(mapped.dtype).removeprefix('torch.')} {tuple(mapped.shape)}"


def _acting(axis: TensorAxis) -> list[str]:
    return [*axis.axis_names(), *(name for name in (axis.map_only, *(part.map_only for part in axis.parts)) if name)]


def _group(spec: PermutationSpec, axis: str) -> Group:
    name = spec.group(axis)
    if name not in GROUPS:
        raise SpecError(f"the {spec.family} table gives axis {axis!r} the group {name!r}.{nearest(name, GROUPS)}")
    return GROUPS[name]


def folded_spec(spec: PermutationSpec) -> PermutationSpec:
    """Return the spec of the same model once the gains of its norms are folded into what reads them: exactly one.

    The residual stream then takes every rotation (RMSNorm), or every one that fixes the ones vector (LayerNorm).
    Folding itself is not done here; a gain that is not one is refused when a rotation meets it.

    Raises:
        SpecError: the gains of this architecture lie in the stream itself (post-LN), or its head reads the stream's basis.
    """
    if not spec.folded:
        raise SpecError(
            f"the residual stream of {spec.family} with this head cannot be rotated: a norm's gain, or a function of single "
            "units, lies in the stream itself. Permute it instead."
        )
    return replace(spec, groups={**spec.groups, **spec.folded}, folded={})
