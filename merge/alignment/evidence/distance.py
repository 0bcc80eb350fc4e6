"""The distance of two models' weights, whatever basis each is written in where no output shows the basis.

Both models are gauge-fixed in three steps. (1) Canonical weights (`merge.symmetry.canonical`): what no output shows is
zero. (2) Balanced (`merge.alignment.solvers.balance`): every scale is split evenly between the two sides of its axis.
What is then still free inside a head is a rotation. (3) b's rotation is the one nearest to a (orthogonal Procrustes,
Schoenemann 1966). Orders, signs and phases are left as they are: finding those is what an alignment is for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from merge.alignment.pair import Pair
from merge.alignment.solvers.balance import BALANCES, balance, factor_rows, joined_rows
from merge.alignment.solvers.procrustes import orthogonal
from merge.errors import AlignmentError
from merge.symmetry.canonical import canonical_weights
from merge.symmetry.permutation import identity
from merge.symmetry.transform import Transform, apply_transform, axis_sizes

Tensors = Mapping[str, Tensor]


def distance(pair: Pair, a: Tensors, b: Tensors) -> float:
    """Return |A - B| / |A| over all gauge-fixed weights.

    Args:
        a, b: the tensors of the two models, by canonical name.

    Raises:
        AlignmentError: all weights of a are zero.
    """
    a, b = _gauge_fixed(pair, a, b)
    names = [name for name, tensor in a.items() if tensor.is_floating_point()]
    difference, size = (
        math.fsum(float(x.double().square().sum()) for x in tensors)
        for tensors in ((a[n].double() - b[n].double() for n in names), (a[n] for n in names))
    )
    if not size:
        raise AlignmentError("every weight of the reference is zero: nothing can be aligned to it. Choose another one.")
    return math.sqrt(difference / size)


def _gauge_fixed(pair: Pair, a: Tensors, b: Tensors) -> tuple[Tensors, Tensors]:
    """Return both models canonical and balanced, b's heads rotated to be nearest to a's."""
    spec, unmoved = pair.spec, identity(pair.spec, pair.shapes)
    sizes = axis_sizes(spec, pair.shapes)
    groups = {axis: spec.group(axis) for axis in sizes if axis not in spec.named and spec.group(axis) in BALANCES}
    a, b = (canonical_weights(spec, pair.config, side) for side in (a, b))
    a, b = (apply_transform(spec, balance(spec, side, groups, unmoved), side) for side in (a, b))
    rotated = [axis for axis, group in groups.items() if group == "linear"]
    sides, maps = [factor_rows(spec, side, rotated) for side in (a, b)], {}
    for axis in rotated:
        pairs = [
            (joined_rows(x, sizes[axis]), joined_rows(y, sizes[axis]))
            for x, y in zip(*(rows[axis] for rows in sides), strict=True)
        ]
        # The rotation with the largest trace of O^T sum(x y^T) brings y nearest to x.
        gains = [x @ y.mT for x, y in pairs if x is not None and y is not None]
        if gains:
            maps[axis] = orthogonal(sum(gains[1:], gains[0])).reshape(*sizes[axis], sizes[axis][-1])
    return a, apply_transform(spec, Transform(unmoved, maps), b)
