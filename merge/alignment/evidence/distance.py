"""Distance of two models' weights, without what is only the choice of a basis that no output shows.

Both are brought into canonical form (`merge.symmetry.canonical`) and balanced (`merge.alignment.solvers.balance`): what is
left free inside a head then is a rotation, and b's is the one nearest to a (orthogonal Procrustes, Schoenemann 1966).
Orders, signs and phases are not touched: they are what an alignment finds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from merge.alignment.pair import Pair
from merge.alignment.solvers.balance import BALANCES, balance, factor_rows, laid
from merge.alignment.solvers.procrustes import orthogonal
from merge.errors import AlignmentError
from merge.symmetry.canonical import canonical_weights
from merge.symmetry.permutation import identity
from merge.symmetry.transform import Transform, apply_transform, axis_sizes

Tensors = Mapping[str, Tensor]


def distance(pair: Pair, a: Tensors, b: Tensors) -> float:
    """Return |A - B| / |A| over all weights, of the bases inside heads and scales of units that are nearest.

    Raises:
        AlignmentError: all weights of a are zero.
    """
    a, b = _gauged(pair, a, b)
    names = [name for name, tensor in a.items() if tensor.is_floating_point()]
    apart, size = (
        math.fsum(float(x.double().square().sum()) for x in those)
        for those in ((a[n].double() - b[n].double() for n in names), (a[n] for n in names))
    )
    if not size:
        raise AlignmentError("every weight of the reference is zero: nothing can be aligned to it. Choose another one.")
    return math.sqrt(apart / size)


def _gauged(pair: Pair, a: Tensors, b: Tensors) -> tuple[Tensors, Tensors]:
    """Return both models balanced, and b's heads in the bases nearest to those of a."""
    spec, still = pair.spec, identity(pair.spec, pair.shapes)
    sizes = axis_sizes(spec, pair.shapes)
    groups = {axis: spec.group(axis) for axis in sizes if axis not in spec.named and spec.group(axis) in BALANCES}
    a, b = (canonical_weights(spec, pair.config, side) for side in (a, b))
    a, b = (apply_transform(spec, balance(spec, side, groups, still), side) for side in (a, b))
    turned = [axis for axis, group in groups.items() if group == "linear"]
    found, maps = [factor_rows(spec, side, turned) for side in (a, b)], {}
    for axis in turned:
        pairs = [
            (laid(x, sizes[axis]), laid(y, sizes[axis])) for x, y in zip(*(rows[axis] for rows in found), strict=True)
        ]
        gains = [x @ y.mT for x, y in pairs if x is not None and y is not None]
        if gains:
            maps[axis] = orthogonal(sum(gains[1:], gains[0])).reshape(*sizes[axis], sizes[axis][-1])
    return a, apply_transform(spec, Transform(still, maps), b)
