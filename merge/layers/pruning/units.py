"""Units: the attention heads and the feed-forward neurons of every layer, and their positions in every tensor.

Both are named axes of the permutation tables: `(heads0 v0)` are the heads of layer 0 with the units inside each of them,
`ffn0` its neurons. The tensor that *reads* the axis (the output projection) gives the columns by which a unit reaches the
residual stream: with those at zero the model computes what it would with the unit's output multiplied by zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import UsageError
from merge.symmetry.architectures import spec_for
from merge.symmetry.spec import PermutationSpec

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from merge.symmetry.notation import View

# Kind of units, as users name it -> the axis inside its blocks.
KINDS = {"heads": "v", "neurons": "ffn"}
_AXIS = re.compile(r"(?:(?P<side>[a-z]+)_)?(?P<kind>v|ffn)(?P<layer>\d+)")


@dataclass(frozen=True, eq=False)
class Place:
    """The positions of units along one item of a tensor's line.

    Attributes:
        tensor: canonical name.
        dim, span: the first dimension of the item, and how many it stands for; positions are along them, flattened.
        positions: (units, positions of each).
        role: `in` for a tensor that reads the units, `out` for one that writes them, `=` for a gate.
    """

    tensor: str
    dim: int
    span: int
    positions: Int[Tensor, "units each"]
    role: str

    def weights(self, tensor: Tensor) -> Tensor:
        """Return the weights of every unit: (units, positions of each, all other dimensions together)."""
        flat = tensor.flatten(self.dim, self.dim + self.span - 1).movedim(self.dim, 0)
        return flat.reshape(len(flat), -1)[self.positions]

    def without(self, tensor: Tensor, units: Int[Tensor, " removed"]) -> Tensor:
        """Return a copy of the tensor in which the weights of some units are zero."""
        flat = tensor.flatten(self.dim, self.dim + self.span - 1)
        zeroed = flat.index_fill(self.dim, self.positions[units].reshape(-1), 0)
        return zeroed.reshape(tensor.shape)


@dataclass(frozen=True, eq=False)
class UnitLayer:
    """The units of one kind in one layer; for layers that share their weights (ALBERT) of all of them.

    Attributes:
        number: of the layer, from 0.
        axis: the axis whose entries are the units: `heads0`, `ffn0`.
        count: number of units; query heads, where several share a key/value head.
        group: query heads of each key/value head; 1 elsewhere.
        readers, writers: their places in the tensors that read and that write them.
        site: the side of a module where their activations can be hooked, or None.
        group_name: the group of maps that acts on the inner axis (`merge.symmetry.groups`).
    """

    number: int
    axis: str
    count: int
    group: int
    readers: tuple[Place, ...]
    writers: tuple[Place, ...]
    site: str | None
    group_name: str


def unit_layers(checkpoint: Checkpoint, kind: str, stack: str = "") -> tuple[UnitLayer, ...]:
    """Return the units of every layer, in order.

    Args:
        kind: heads or neurons.
        stack: text or vision, in models with both.
    Raises:
        UsageError: the model has no such units, or two lists of layers and no stack was given.
        SpecError: no table of axes fits the model.
    """
    spec, shapes = spec_for(checkpoint.config), checkpoint.encoder.shapes
    spec.fit(shapes)
    places: dict[tuple[str, int], list[tuple[View, Place]]] = {}
    for view, place in _views(spec, shapes):
        match = _AXIS.fullmatch(view.map_axis)
        if match and match["kind"] == KINDS[kind] and (kind == "neurons" or len(view.names) > 1):
            places.setdefault((match["side"] or "", int(match["layer"])), []).append((view, place))
    sides = {side for side, _ in places}
    chosen = _side(checkpoint, sides, stack)
    layers = [
        layer
        for (side, number), found in sorted(places.items())
        if side == chosen and (layer := _layer(spec, number, found)) is not None
    ]
    if not layers:
        raise UsageError(
            f"{checkpoint.source}: the {kind} of {checkpoint.model_type} models cannot be cut: nothing is known of where "
            "they are in its tensors. Models without attention have no heads; others need a table of axes "
            "(docs/architectures.md)."
        )
    return tuple(layers)


def _views(spec: PermutationSpec, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[View, Place]]:
    """Yield every view of every tensor with its place; units are all levels but the last of a split axis."""
    for name, shape in shapes.items():
        dim = 0
        for axis, views in zip(spec.axes(name), spec.views(name, shape), strict=True):
            for view in views:
                yield view, place_of(name, dim, axis.span, view)
            dim += axis.span


def place_of(name: str, dim: int, span: int, view: View) -> Place:
    """Return the place of the blocks of a split axis, or of the units of a plain one."""
    from merge.symmetry.permutation import unit_positions

    positions = unit_positions(view)
    each = view.shape[-1] if len(view.shape) > 1 else 1
    return Place(name, dim, span, positions.reshape(-1, each), view.role)


def _side(checkpoint: Checkpoint, sides: set[str], stack: str) -> str:
    """Return the list of layers that is meant: the word before its axes.

    A derived table has no word for the first of several lists, which in models with a decoder is the encoder.
    """
    named = {("encoder" if side == "" and "decoder" in sides else side): side for side in sides}
    if stack in named or not named:
        return named.get(stack, "")
    if len(named) == 1 and not stack:
        return next(iter(sides))
    if not stack:
        raise UsageError(
            f"{checkpoint.source} has {len(named)} lists of layers. Give one: --stack {' or '.join(sorted(named))}."
        )
    raise UsageError(
        f"{checkpoint.source} has no list of layers named {stack!r}. "
        + (f"Expected: {' or '.join(sorted(named))}." if sides != {""} else "It has only one; leave --stack out.")
    )


def _layer(spec: PermutationSpec, number: int, found: list[tuple[View, Place]]) -> UnitLayer | None:
    """Return the units of a layer; None where no tensor is known to read them."""
    inner = found[0][0].map_axis
    hooked = {
        site.split(":")[0]: site
        for line, sites in spec.taps.items()
        for site in sites
        if inner in re.findall(r"\w+", line) and site.split(":")[1] == "in"
    }
    by_module = {f"{module}.weight" for module in hooked}
    roles = any(place.role == "in" for _, place in found)
    read = [(v, p) for v, p in found if (p.role == "in" if roles else p.tensor in by_module)]
    if not read:
        return None
    view, place = read[0]
    readers = tuple(p for _, p in read)
    return UnitLayer(
        number,
        view.names[0],
        len(place.positions),
        view.shape[1] if len(view.shape) == 3 else 1,
        readers,
        tuple(p for _, p in found if p not in readers),
        hooked.get(place.tensor.removesuffix(".weight")),
        spec.group(inner),
    )
