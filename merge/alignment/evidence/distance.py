"""The distance of two models' weights, whatever basis each is written in where no output shows the basis.

Both models are gauge-fixed in three steps. (1) Canonical weights (`merge.symmetry.canonical`): what no output shows is
zero. (2) Balanced (`merge.alignment.solvers.balance`): every scale is split evenly between the two sides of its axis.
What is then still free inside a head is a rotation. (3) b's rotation is the one nearest to a (orthogonal Procrustes,
Schoenemann 1966). Orders, signs and phases are left as they are: finding those is what an alignment is for.

Heads are gauge-fixed one axis at a time, so that no second copy of a model is ever built: what it changes in the squares
is added to those of the weights as they are. All of it follows from the products of a head's rows with one another and with
those of the other model's head, n x n each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.pair import Pair
from merge.alignment.solvers.balance import BALANCES, MIN_SINGULAR_RATIO, Rows, balance, factor_rows, joined_rows
from merge.alignment.solvers.objective import CHUNK, square_sum
from merge.alignment.solvers.procrustes import orthogonal
from merge.errors import AlignmentError
from merge.machine import in_parallel
from merge.symmetry.canonical import canonical_weights
from merge.symmetry.permutation import identity
from merge.symmetry.spec import PermutationSpec
from merge.symmetry.transform import axis_sizes, moved_when_read

# Where gauge-fixed heads differ by a smaller share of their squares, the difference itself is computed: sums of products
# would leave rounding.
MIN_SHARE = 1e-6

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
    return canonical_distances(pair.spec, *(canonical_weights(pair.spec, pair.config, side) for side in (a, b)))[0]


def canonical_distances(spec: PermutationSpec, a: Tensors, *others: Tensors) -> tuple[float, ...]:
    """Return |A - B| / |A| over all gauge-fixed weights for each other model B; the weights of all are canonical.

    Raises:
        AlignmentError: all weights of a are zero.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in a.items()}
    floating = [name for name, tensor in a.items() if tensor.is_floating_point()]
    sizes = axis_sizes(spec, shapes)
    groups = {axis: spec.group(axis) for axis in sizes if axis not in spec.named and spec.group(axis) in BALANCES}
    scaled = {axis: group for axis, group in groups.items() if group != "linear"}
    if scaled:
        unmoved = identity(spec, shapes)
        a, *rest = (moved_when_read(spec, balance(spec, side, scaled, unmoved), side) for side in (a, *others))
        others = tuple(rest)

    def squares_of(name: str) -> tuple[float, list[float]]:
        x = a[name]
        return square_sum(x), [_square_of_difference(x, b[name]) for b in others]

    def lowered_by(axis: str) -> tuple[float, list[float]]:
        fixed, *heads_of_others = (_fixed_heads(spec, side, axis, sizes[axis]) for side in (a, *others))
        return -fixed.lowered, [-_gauge_gain(fixed, heads) for heads in heads_of_others]

    terms = in_parallel(squares_of, floating)
    terms += in_parallel(lowered_by, [axis for axis, group in groups.items() if group == "linear"])
    size = [own for own, _ in terms]
    differences = [[squares[k] for _, squares in terms] for k in range(len(others))]
    norm = math.fsum(size)
    if norm <= 0:
        raise AlignmentError("every weight of the reference is zero: nothing can be aligned to it. Choose another one.")
    # What rounding leaves of equal models is no distance.
    return tuple(math.sqrt(max(math.fsum(squares), 0.0) / norm) for squares in differences)


def _square_of_difference(x: Tensor, y: Tensor) -> float:
    pieces = zip(x.reshape(-1).split(CHUNK), y.reshape(-1).split(CHUNK), strict=True)
    return math.fsum(square_sum(one.double() - other.double()) for one, other in pieces)


@dataclass(frozen=True)
class _FixedHeads:
    """The heads of an axis and the maps that balance them.

    Attributes:
        factors: what the heads write, and what reads it.
        maps: of both factors.
        squares: the sum of the squares of each factor; 0 where there is none.
        balanced: the same of the balanced factors.
    """

    factors: Factors
    maps: tuple[Heads | None, Heads | None]
    squares: tuple[float, float]
    balanced: tuple[float, float]

    @property
    def lowered(self) -> float:
        """By how much balancing lowers the squares of both."""
        return math.fsum(self.squares) - math.fsum(self.balanced)


def _fixed_heads(spec: PermutationSpec, tensors: Tensors, axis: str, shape: tuple[int, ...]) -> _FixedHeads:
    factors = [joined_rows(arrays, shape) for arrays in factor_rows(spec, tensors, [axis])[axis]]
    grams = [None if x is None else x @ x.mT for x in factors]
    maps = _balancing(*factors, *grams)
    before, after = [0.0, 0.0], [0.0, 0.0]
    for k, (gram, m) in enumerate(zip(grams, maps, strict=True)):
        if gram is not None and m is not None:
            before[k], after[k] = float(gram.diagonal(0, 1, 2).sum()), float((m * (m @ gram)).sum())
    return _FixedHeads(factors, maps, (before[0], before[1]), (after[0], after[1]))


def _gauge_gain(a: _FixedHeads, b: _FixedHeads) -> float:
    """Return by how much gauge-fixing the heads of an axis lowers |A - B|^2."""
    both = [k for k in (0, 1) if a.factors[k] is not None and b.factors[k] is not None]
    if not both:
        return 0.0
    crossed = [a.factors[k] @ b.factors[k].mT for k in both]
    products = [a.maps[k] @ x @ b.maps[k].mT for k, x in zip(both, crossed, strict=True)]  # type: ignore[union-attr]
    product = sum(products[1:], products[0])
    # The rotation with the largest trace of R^T sum(x y^T) brings y nearest to x; that trace is the sum of singular values.
    near = float(torch.linalg.svdvals(product).sum())
    before = math.fsum(side.squares[k] for side in (a, b) for k in both)
    after = math.fsum(side.balanced[k] for side in (a, b) for k in both)
    plain = before - 2 * math.fsum(float(x.diagonal(0, 1, 2).sum()) for x in crossed)
    left = after - 2 * near
    if min(plain, left) < MIN_SHARE * before:
        rotation = orthogonal(product)
        fixed = [[side.maps[k] @ side.factors[k] for k in both] for side in (a, b)]
        plain = math.fsum(square_sum(a.factors[k] - b.factors[k]) for k in both)
        left = math.fsum(square_sum(x - rotation @ y) for x, y in zip(*fixed, strict=True))
    return plain - left


def _balancing(
    out: Rows | None, into: Rows | None, gram_out: Heads | None, gram_into: Heads | None
) -> tuple[Heads | None, Heads | None]:
    """Return for every head the maps of both factors after which they have one size.

    From the factors' Gram matrices: with L L^T = out out^T and L^T (into into^T) L = U S^2 U^T the maps are S^.5 U^T L^-1 and its
    inverse transpose S^-.5 U^T L^T. A head that does not use all its directions, or has one factor only, stays as it is.
    """
    some = out if out is not None else into
    assert some is not None
    n = some.shape[1]
    unit = torch.eye(n, dtype=torch.float64).repeat(len(some), 1, 1)
    if out is None or into is None or gram_into is None or min(out.shape[2], into.shape[2]) < n:
        return unit, unit
    left, failed = torch.linalg.cholesky_ex(gram_out)
    squares, u = torch.linalg.eigh(left.mT @ gram_into @ left)
    values = squares.clamp_min(0).sqrt()  # the singular values of out^T into, the smallest first
    whole = ((failed == 0) & (values[:, 0] > MIN_SINGULAR_RATIO * values[:, -1]))[:, None, None]
    root = torch.where(whole, values[:, :, None], 1.0).sqrt()
    lower = torch.where(whole, left, unit)
    out_map = root * torch.linalg.solve_triangular(lower, u.mT, upper=False, left=False)
    return torch.where(whole, out_map, unit), torch.where(whole, u.mT @ lower.mT / root, unit)
