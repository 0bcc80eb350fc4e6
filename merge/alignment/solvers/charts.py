"""Coordinates on the continuous groups around the identity, and weights as a differentiable function of them.

    linear            G = exp(Z)                                 G^-T = exp(-Z)^T
    orthogonal        O = (I - S/2)^-1 (I + S/2), S = Z - Z^T    O^-T = O      (Cayley)
    orthogonal_one    the same, S between the ones vector's complement, so that O 1 = 1
    positive, real    s = exp(z)                                 1/s
    rotary            r e^(i theta), r = exp(z)                  e^(i theta) / r

Zero is the identity, and every value is an element of its group: a model moved along them keeps its function. The other
groups (permutations, signs) are discrete and have no coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from merge.symmetry.groups import Shape, complex_map
from merge.symmetry.maps import map_units
from merge.symmetry.permutation import unit_positions
from merge.symmetry.spec import PermutationSpec

# A map, and its inverse transpose.
Both = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Chart:
    """Coordinates on a group.

    Attributes:
        shape: of the axis -> of its coordinates.
        at: coordinates, with any axes in front -> the map there and its inverse transpose.
    """

    shape: Callable[[Shape], Shape]
    at: Callable[[Tensor], Both]


def _square(shape: Shape) -> Shape:
    return (*shape, shape[-1])


def _linear(z: Float[Tensor, "... n n"]) -> Both:
    return torch.linalg.matrix_exp(z), torch.linalg.matrix_exp(-z).mT


def _cayley(skew: Float[Tensor, "... n n"]) -> Both:
    unit = torch.eye(skew.shape[-1], dtype=skew.dtype)
    rotation = torch.linalg.solve(unit - skew / 2, unit + skew / 2)
    return rotation, rotation


def _orthogonal(z: Float[Tensor, "... n n"]) -> Both:
    return _cayley(z - z.mT)


def _orthogonal_one(z: Float[Tensor, "... n n"]) -> Both:
    centred = z - z.mean(-1, keepdim=True)
    centred = centred - centred.mean(-2, keepdim=True)
    return _cayley(centred - centred.mT)


def _scale(z: Tensor) -> Both:
    return z.exp(), (-z).exp()


def _rotary(adjacent: bool) -> Callable[[Tensor], Both]:
    def at(z: Float[Tensor, "... n"]) -> Both:
        size, angle = z.chunk(2, -1)
        real, imaginary = angle.cos(), angle.sin()
        return (
            complex_map(size.exp() * real, size.exp() * imaginary, adjacent),
            complex_map((-size).exp() * real, (-size).exp() * imaginary, adjacent),
        )

    return at


CHARTS: Mapping[str, Chart] = {
    "linear": Chart(_square, _linear),
    "orthogonal": Chart(_square, _orthogonal),
    "orthogonal_one": Chart(_square, _orthogonal_one),
    "positive": Chart(lambda shape: shape, _scale),
    "real": Chart(lambda shape: shape, _scale),
    "rotary": Chart(lambda shape: shape, _rotary(adjacent=False)),
    "rotary_adjacent": Chart(lambda shape: shape, _rotary(adjacent=True)),
}


@dataclass(frozen=True)
class Coordinates:
    """Coordinates of several axes with the same group and shape, stacked, float64.

    Attributes:
        group: of all these axes.
        axes: their names, along the first dimension of `values`.
        shape: of each axis.
        values: the parameters; zero is the identity.
    """

    group: str
    axes: tuple[str, ...]
    shape: Shape
    values: Tensor


def origin(spec: PermutationSpec, axes: Mapping[str, Shape]) -> tuple[Coordinates, ...]:
    """Return the coordinates of the identity for every axis whose group has some; they require gradients."""
    alike: dict[tuple[str, Shape], list[str]] = {}
    for axis, shape in axes.items():
        if spec.group(axis) in CHARTS:
            alike.setdefault((spec.group(axis), shape), []).append(axis)
    return tuple(
        Coordinates(group, tuple(names), shape, _zeros(len(names), CHARTS[group].shape(shape)))
        for (group, shape), names in alike.items()
    )


def _zeros(count: int, shape: Shape) -> Tensor:
    return torch.zeros(count, *shape, dtype=torch.float64, requires_grad=True)


def maps_at(coordinates: Sequence[Coordinates]) -> dict[str, Both]:
    """Return axis -> its map, and the inverse transpose, at these coordinates; float64."""
    maps: dict[str, Both] = {}
    for part in coordinates:
        out, into = CHARTS[part.group].at(part.values)
        maps |= {axis: (out[k], into[k]) for k, axis in enumerate(part.axes)}
    return maps


@dataclass(frozen=True)
class Action:
    """How the map of an axis acts on a tensor.

    Attributes:
        axis: whose map.
        dim, span: of the tensor's axes, laid flat.
        positions: of the units there, block by block; None for all of them in order.
        shape: units at each level of their view: (n,), (blocks, n) or (blocks, queries, n).
        into: whether the inverse transpose acts.
    """

    axis: str
    dim: int
    span: int
    positions: Tensor | None
    shape: Shape
    into: bool


def actions(
    spec: PermutationSpec, shapes: Mapping[str, tuple[int, ...]], axes: Collection[str]
) -> dict[str, tuple[Action, ...]]:
    """Return tensor -> how maps of these axes act on it; tensors that none acts on are left out.

    Maps do not act on gains and gates (role `=`).
    """
    by_tensor = {}
    for name, shape in shapes.items():
        acting, dim = [], 0
        for item, along in zip(spec.axes(name), spec.views(name, shape), strict=True):
            size = math.prod(shape[dim : dim + item.span])
            for view in along:
                if view.map_axis in axes and view.role != "=":
                    positions = unit_positions(view).reshape(-1)
                    whole = torch.equal(positions, torch.arange(size))
                    rest = (view.shape, view.role == "in")
                    acting.append(Action(view.map_axis, dim, item.span, None if whole else positions, *rest))
            dim += item.span
        if acting:
            by_tensor[name] = tuple(acting)
    return by_tensor


def moved(tensor: Tensor, acting: Sequence[Action], maps: Mapping[str, Both]) -> Tensor:
    """Return a tensor under the maps, in its own dtype; differentiable.

    Unlike `transform.apply_transform_axes`, which computes in float64 and checks that gains allow a rotation.
    """
    for action in acting:
        mapped = maps[action.axis][action.into].to(tensor.dtype)
        sizes = tensor.shape[action.dim : action.dim + action.span]
        flat = tensor.flatten(action.dim, action.dim + action.span - 1).movedim(action.dim, -1)
        units = flat if action.positions is None else flat[..., action.positions]
        new = map_units(mapped, action.shape, units)
        out = new if action.positions is None else flat.index_copy(-1, action.positions, new)
        tensor = out.movedim(-1, action.dim).unflatten(action.dim, sizes)
    return tensor
