"""Redundant neurons: those that nothing reads, and those that compute what another neuron of the layer computes.

Neurons with the same input weights give the same activation, so one can stay with the sum of their outgoing weights. What
counts as the same follows from the group of maps on the axis: relu(s x) = s relu(x) for s > 0, an up-projection beside a
gate takes any scale, tanh a sign; the outgoing weights take that factor. Gates must be equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.checkpoints.checkpoint import Checkpoint

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from merge.layers.pruning.units import UnitLayer


@dataclass(frozen=True)
class Redundant:
    """The redundant neurons of one layer.

    Attributes:
        merged: neuron -> (the one that stays, the factor of its outgoing weights).
        silent: neurons that nothing reads.
    """

    merged: Mapping[int, tuple[int, float]]
    silent: tuple[int, ...]

    @property
    def removed(self) -> tuple[int, ...]:
        """All neurons that can go, ascending."""
        return tuple(sorted({*self.merged, *self.silent}))


def find_redundant(checkpoint: Checkpoint, layer: UnitLayer, tolerance: float) -> Redundant:
    """Return the redundant neurons of a layer; one neuron stays, even where nothing reads any.

    Args:
        tolerance: largest difference of two neurons' input weights, after the group's factor, relative to the largest of
            the first's.
    """
    import torch

    read = torch.cat([p.weights(checkpoint.tensor(p.tensor).double()).flatten(1) for p in layer.readers], 1)
    silent = [int(n) for n in (read == 0).all(1).nonzero()[:, 0]]
    if len(silent) == layer.count:
        silent = silent[1:]
    alive = [n for n in range(layer.count) if n not in set(silent)]
    inputs, scale = _normalised(checkpoint, layer)
    merged = {
        alive[twin]: (alive[first], float(scale[alive[twin]] / scale[alive[first]]))
        for twin, first in _twins(inputs[alive], tolerance).items()
    }
    return Redundant(merged, tuple(silent))


def merging(redundant: Redundant) -> tuple[Tensor, Tensor, Tensor]:
    """Return (neuron that goes, neuron that stays, factor) of every merged pair."""
    import torch

    pairs = [(twin, first, factor) for twin, (first, factor) in sorted(redundant.merged.items())]
    twins, firsts, factors = zip(*pairs, strict=True) if pairs else ((), (), ())
    return torch.tensor(twins, dtype=torch.int64), torch.tensor(firsts, dtype=torch.int64), torch.tensor(factors)


def _normalised(checkpoint: Checkpoint, layer: UnitLayer) -> tuple[Float[Tensor, "units n"], Float[Tensor, " units"]]:
    """Return the input weights of every neuron with the group's factor taken out, and the factor."""
    import torch

    def side(roles: Sequence[str]) -> Tensor:
        parts = [p.weights(checkpoint.tensor(p.tensor).double()).flatten(1) for p in layer.writers if p.role in roles]
        return torch.cat(parts, 1) if parts else torch.zeros(layer.count, 0, dtype=torch.float64)

    gates, written = side(("=",)), side(("out", "in"))
    scale = torch.ones(layer.count, dtype=torch.float64)
    if layer.group_name in ("positive", "real"):
        scale = written.norm(dim=1)
    if layer.group_name in ("signed", "real") and written.shape[1]:
        largest = written.gather(1, written.abs().argmax(1, keepdim=True))[:, 0]
        scale = scale * torch.where(largest < 0, -1.0, 1.0)
    scale = torch.where(scale == 0, 1.0, scale)
    return torch.cat([gates, written / scale[:, None]], 1), scale


def _twins(rows: Float[Tensor, "units n"], tolerance: float) -> dict[int, int]:
    """Return row -> the first row that it equals within the tolerance.

    Rows that are near have near projections on any direction, so each is compared with its neighbours on one only.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(rows.shape[1], generator=generator, dtype=torch.float64)
    projected, order = (rows @ direction).sort()
    largest = rows.abs().amax(1)
    twins: dict[int, int] = {}
    for place, first in enumerate(order.tolist()):
        if first in twins:
            continue
        reach = tolerance * float(largest[first]) * float(direction.abs().sum()) + 1e-9 * abs(float(projected[place]))
        end = int(torch.searchsorted(projected, projected[place] + reach, right=True))
        near = order[place + 1 : end]
        equal = (rows[near] - rows[first]).abs().amax(1) <= tolerance * largest[first]
        group = sorted([first, *(n for n in near[equal].tolist() if n not in twins)])
        twins |= dict.fromkeys(group[1:], group[0])
    return twins
