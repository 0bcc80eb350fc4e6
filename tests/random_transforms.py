"""Random elements of the groups: what the tests plant, recover and compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from merge.symmetry.groups import Shape, complex_map
from merge.symmetry.permutation import random, restrict
from merge.symmetry.spec import PermutationSpec
from merge.symmetry.transform import Shapes, Transform, axis_sizes

# Random scales lie between its inverse and this, so that every map is well conditioned.
SCALE_RANGE = 2.0

Draw = Callable[[Shape, torch.Generator], Tensor]


def _signs(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=generator).double() * 2 - 1


def _scales(shape: Shape, generator: torch.Generator) -> Tensor:
    return SCALE_RANGE ** (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1)


def _one_sign(shape: Shape, generator: torch.Generator) -> Tensor:
    # A random sign would be the identity in one draw of two.
    return -torch.ones(shape, dtype=torch.float64)


def _real(shape: Shape, generator: torch.Generator) -> Tensor:
    return _signs(shape, generator) * _scales(shape, generator)


def _orthogonal(shape: Shape, generator: torch.Generator) -> Tensor:
    normal = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    return torch.linalg.qr(normal)[0]


def _orthogonal_one(shape: Shape, generator: torch.Generator) -> Tensor:
    """Return H diag(1, O) H, where H swaps the first axis and the direction of the ones vector."""
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


def _complex(adjacent: bool) -> Draw:
    def draw(shape: Shape, generator: torch.Generator) -> Tensor:
        half = (*shape[:-1], shape[-1] // 2)
        scale = _scales(half, generator)
        angle = torch.rand(half, generator=generator, dtype=torch.float64) * (2 * torch.pi)
        return complex_map(scale * angle.cos(), scale * angle.sin(), adjacent)

    return draw


def _pair_signs(shape: Shape, generator: torch.Generator) -> Tensor:
    half = _signs((*shape[:-1], shape[-1] // 2), generator)
    return torch.cat([half, half], -1)


# Group -> a random map on an axis of some shape; the groups that are not here hold no map but the identity.
DRAWS: Mapping[str, Draw] = {
    "signed": _signs,
    "sign": _one_sign,
    "positive": _scales,
    "real": _real,
    "linear": _linear,
    "orthogonal": _orthogonal,
    "orthogonal_one": _orthogonal_one,
    "rotary": _complex(adjacent=False),
    "rotary_adjacent": _complex(adjacent=True),
    "rotary_sign": _pair_signs,
}


def random_map(group: str, shape: Shape, generator: torch.Generator) -> Tensor:
    """Return a random, well-conditioned map of a group on an axis of this shape."""
    return DRAWS[group](shape, generator)


def random_transform(spec: PermutationSpec, shapes: Shapes, generator: torch.Generator) -> Transform:
    """Return a random element: every axis permuted, unless its group is `none`, and a map on each whose group has maps."""
    permutation, maps = random(spec, shapes, generator), {}
    for axis, shape in axis_sizes(spec, shapes).items():
        if (group := spec.group(axis)) in DRAWS:
            maps[axis] = random_map(group, shape, generator)
    return Transform(restrict(permutation, [axis for axis in permutation.indices if spec.group(axis) != "none"]), maps)
