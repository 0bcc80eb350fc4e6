"""The distance of two models' weights, whatever basis each is written in where no output shows the basis.

Both models are gauge-fixed in three steps. (1) Canonical weights (`merge.symmetry.canonical`): what no output shows is
zero. (2) Balanced (`merge.alignment.solvers.balance`): every scale is split evenly between the two sides of its axis.
What is then still free inside a head is a rotation. (3) b's rotation is the one nearest to a (orthogonal Procrustes,
Schoenemann 1966). Orders, signs and phases are left as they are: finding those is what an alignment is for.

Heads are gauge-fixed one axis at a time, so that no second copy of a model is ever built: what it changes in the squares
is added to those of the weights as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.pair import Pair
from merge.alignment.solvers.balance import BALANCES, MIN_SINGULAR_RATIO, Rows, balance, factor_rows, joined_rows
from merge.alignment.solvers.objective import CHUNK, square_sum
from merge.alignment.solvers.procrustes import orthogonal
from merge.errors import AlignmentError
from merge.symmetry.canonical import canonical_weights
from merge.symmetry.permutation import identity
from merge.symmetry.spec import PermutationSpec
from merge.symmetry.transform import axis_sizes, moved_when_read

Tensors = Mapping[str, Tensor]
Heads = Float[Tensor, "heads n n"]
# What the heads of an axis write, and what reads it: Rows, or None where no tensor does.
Factors = Sequence[Any]


def distance(pair: Pair, a: Tensors, b: Tensors) -> float:
    """Return |A - B| / |A| over all gauge-fixed weights.

    Args:
        a, b: the tensors of the two models, by canonical name.

    Raises:
        AlignmentError: all weights of a are zero.
    """
    return canonical_distance(pair.spec, *(canonical_weights(pair.spec, pair.config, side) for side in (a, b)))


def canonical_distance(spec: PermutationSpec, a: Tensors, b: Tensors) -> float:
    """Return |A - B| / |A| over all gauge-fixed weights of two models whose weights are canonical.

    Raises:
        AlignmentError: all weights of a are zero.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in a.items()}
    sizes = axis_sizes(spec, shapes)
    groups = {axis: spec.group(axis) for axis in sizes if axis not in spec.named and spec.group(axis) in BALANCES}
    scaled = {axis: group for axis, group in groups.items() if group != "linear"}
    if scaled:
        unmoved = identity(spec, shapes)
        a, b = (moved_when_read(spec, balance(spec, side, scaled, unmoved), side) for side in (a, b))
    linear = {axis: group for axis, group in groups.items() if group == "linear"}.keys()
    difference, size = [], []
    for name in shapes:
        if a[name].is_floating_point():
            difference.append(_square_of_difference(a[name], b[name]))
            size.append(square_sum(a[name]))
    for axis in linear:
        sides = [factor_rows(spec, side, [axis])[axis] for side in (a, b)]
        lowered = _gauge_gain(*([joined_rows(arrays, sizes[axis]) for arrays in side] for side in sides))
        difference.append(-lowered[0])
        size.append(-lowered[1])
    total, norm = math.fsum(difference), math.fsum(size)
    if norm <= 0:
        raise AlignmentError("every weight of the reference is zero: nothing can be aligned to it. Choose another one.")
    # What rounding leaves of equal models is no distance.
    return math.sqrt(max(total, 0.0) / norm)


def _square_of_difference(x: Tensor, y: Tensor) -> float:
    pieces = zip(x.reshape(-1).split(CHUNK), y.reshape(-1).split(CHUNK), strict=True)
    return math.fsum(square_sum(one.double() - other.double()) for one, other in pieces)


def _gauge_gain(a: Factors, b: Factors) -> tuple[float, float]:
    """Return by how much gauge-fixing the heads of an axis lowers |A - B|^2, and by how much |A|^2.

    Args:
        a, b: the factors of the two models.
    """
    fixed: list[list[Any]] = [
        [None if x is None else m @ x for x, m in zip(side, _balancing(*side), strict=True)] for side in (a, b)
    ]
    present = [k for k in (0, 1) if a[k] is not None and b[k] is not None]
    if not present:
        return 0.0, 0.0
    # The rotation with the largest trace of R^T sum(x y^T) brings y nearest to x.
    gains = [fixed[0][k] @ fixed[1][k].mT for k in present]
    rotation = orthogonal(sum(gains[1:], gains[0]))
    lowered = [square_sum(a[k] - b[k]) - square_sum(fixed[0][k] - rotation @ fixed[1][k]) for k in present]
    return math.fsum(lowered), math.fsum(square_sum(a[k]) - square_sum(fixed[0][k]) for k in (0, 1) if a[k] is not None)


def _balancing(out: Rows | None, into: Rows | None) -> tuple[Heads | None, Heads | None]:
    """Return for every head the maps of both factors after which they have one size.

    From the factors' Gram matrices: with L L^T = out out^T and L^T (into into^T) L = U S^2 U^T the maps are S^.5 U^T L^-1 and its
    inverse transpose S^-.5 U^T L^T. A head that does not use all its directions, or has one factor only, stays as it is.
    """
    some = out if out is not None else into
    assert some is not None
    n = some.shape[1]
    unit = torch.eye(n, dtype=torch.float64).repeat(len(some), 1, 1)
    if out is None or into is None or min(out.shape[2], into.shape[2]) < n:
        return unit, unit
    left, failed = torch.linalg.cholesky_ex(out @ out.mT)
    squares, u = torch.linalg.eigh(left.mT @ (into @ into.mT) @ left)
    values = squares.clamp_min(0).sqrt()  # the singular values of out^T into, the smallest first
    whole = ((failed == 0) & (values[:, 0] > MIN_SINGULAR_RATIO * values[:, -1]))[:, None, None]
    root = torch.where(whole, values[:, :, None], 1.0).sqrt()
    lower = torch.where(whole, left, unit)
    out_map = root * torch.linalg.solve_triangular(lower, u.mT, upper=False, left=False)
    return torch.where(whole, out_map, unit), torch.where(whole, u.mT @ lower.mT / root, unit)
