"""Optimal transport of b's units to a's positions, layer by layer, also for different numbers of units.

The cost of moving unit j to position i is the distance of their weights, every tensor at root mean square one,

    T = argmin sum_ij T_ij D_ij,    D_ij = sqrt(sum_t || A_t[i] - B_t[j] ||^2),    T 1 = 1 / n_a,  T^T 1 = 1 / n_b,

with tensors whose other axes are matched already. For equal widths the best plan is a permutation: `match_transport` computes
it axis by axis, first against the axes matched before it, then against all, and is function-preserving.

`transported` takes models of different feed-forward widths. It is NOT function-preserving: position i becomes the
mixture of the units moved there, and what reads unit j reads the positions it was moved to,

    rows that write the axis   W' = n_a T W       columns that read it   W' = W (n_b T)^T

The function is unchanged only where units that share a position are equal. The residual stream, heads and depth must agree.

Source: Singh and Jaggi 2020, arXiv:1910.05653.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.pair import Alignment, Matcher, Pair, check_kinds, in_dtype
from merge.alignment.solvers.assignment import match_axis
from merge.alignment.solvers.blocks import match_blocks
from merge.alignment.solvers.objective import Objective, weights_of
from merge.alignment.solvers.unit_rows import unit_rows
from merge.checkpoints.transformers_model import build
from merge.errors import AlignmentError
from merge.symmetry.notation import View
from merge.symmetry.permutation import Permutation, apply_axes, identity, unit_positions

# Up to so many copies of units a plan is exact; beyond that it is smoothed by entropy with this share of the mean cost.
MAX_COPIES = 4096
ENTROPY_SHARE, MAX_ITERATIONS = 0.01, 2000


def match_transport(pair: Pair) -> Matcher:
    """Return the matcher that minimises the distance of matched units layer by layer; never worse than the identity."""
    weights = weights_of(pair)

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        objective, unmoved = Objective(pair, weights, pair.axes_of(kinds)), identity(pair.spec, pair.shapes)
        p, matched = unmoved, frozenset[str]()
        for against_all in (False, True):
            for coordinate in objective.occurrences:
                p = _match_coordinate(objective, coordinate, p, None if against_all else matched)
                matched |= set(objective.axes_of(coordinate))
        values = [sum(objective.terms(objective.tensor_names, q).values()) / objective.entries for q in (unmoved, p)]
        names = tuple(kind for kind in pair.kinds() if kind in kinds)
        better = values[1] > values[0]
        return Alignment(p if better else unmoved, names, tuple(values if better else values[:1]))

    return match


def _match_coordinate(
    objective: Objective, coordinate: str, p: Permutation, matched: frozenset[str] | None
) -> Permutation:
    """Return p with one axis, or blocks and the orders inside them, at the least distance; the others are held."""
    gains, weights = {}, objective.weights
    for names, likeness in objective.gains(coordinate, p, matched).items():
        units = math.isqrt(likeness.numel())
        squares = [torch.zeros(units, dtype=torch.float64) for _ in "ab"]
        for occurrence in objective.occurrences[coordinate]:
            if occurrence.view.names == names and (matched is None or occurrence.others <= matched):
                for total, side in zip(squares, "ab", strict=True):
                    scale = (weights.scale_a if side == "a" else weights.scale_b)[occurrence.tensor]
                    total += objective.rows(occurrence, side, None).double().square().sum(1) * scale**2
        apart = squares[0][:, None] + squares[1] - 2 * likeness.reshape(units, units)
        gains[names] = -apart.clamp_min(0).sqrt().reshape(likeness.shape)
    alone = set(gains) == {(coordinate,)}
    indices = {coordinate: match_axis(gains[coordinate,])} if alone else match_blocks(gains)
    return Permutation({**p.indices, **indices}, p.outer)


@dataclass(frozen=True)
class Transported:
    """Model b in a's shapes, approximately, and the plan of every axis that had another width: (n_a, n_b)."""

    tensors: Mapping[str, Tensor]
    plans: Mapping[str, Float[Tensor, "n_a n_b"]]


def transported(pair: Pair) -> Transported:
    """Return b re-expressed in the widths of a, in its own units elsewhere. Its function changes.

    Args:
        pair: of equal tensors but for the sizes of feed-forward axes.
    Raises:
        AlignmentError: another axis or size differs, or a tensor has two axes that differ.
    """
    axes = widths(pair)
    inside = {name for name in pair.a if pair.a[name].shape != pair.b[name].shape}
    for name in sorted(inside):
        if axes.keys().isdisjoint(axis for item in pair.spec.axes(name) for axis in item.axis_names()):
            raise AlignmentError(
                f"transport takes models of different feed-forward widths; {name} has shape {tuple(pair.a[name].shape)} in "
                f"one and {tuple(pair.b[name].shape)} in the other, on no feed-forward axis."
            )
    a, b = ({n: t for n, t in side.items() if n not in inside} for side in (pair.a, pair.b))
    rest = replace(pair, a=a, b=b)
    p = match_transport(rest)(frozenset(rest.kinds())).permutation
    sizes = {name: tuple(tensor.shape) for name, tensor in pair.b.items()}
    p = Permutation({**identity(pair.spec, sizes).indices, **p.indices}, p.outer)
    plans = {axis: plan(_apart(pair, axis, p)) for axis in axes}
    return Transported({n: _fitted(pair, n, plans) if n in inside else t for n, t in pair.b.items()}, plans)


def output_change(pair: Pair, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> float:
    """Return the change of b's outputs with these tensors: root mean square, in standard deviations of the output.

    Args:
        tensors: b in a's shapes.
        config: b's own.
    """
    before = build(config, {pair.written_name(name): tensor for name, tensor in pair.b.items()}, torch.float32)
    after, worst = pair.model(tensors), 0.0
    with torch.inference_mode():
        outputs = [[model(**in_dtype(batch, torch.float32)) for model in (before, after)] for batch in pair.batches]
    for name in (name for name in pair.spec.outputs if name in outputs[0][0]):
        old, new = (torch.cat([both[k][name].flatten().double() for both in outputs]) for k in range(2))
        worst = max(worst, float((new - old).square().mean().sqrt() / old.std().clamp_min(1e-30)))
    return worst


def widths(pair: Pair) -> dict[str, tuple[int, int]]:
    """Return the axes on which the models differ -> units of a, units of b.

    Raises:
        AlignmentError: one of them is not a feed-forward axis.
    """
    sides = ({name: tuple(t.shape) for name, t in side.items()} for side in (pair.a, pair.b))
    sizes_a, sizes_b = (pair.spec.fit(shapes) for shapes in sides)
    different = {axis: (size[-1], sizes_b[axis][-1]) for axis, size in sizes_a.items() if sizes_b[axis] != size}
    for axis, (n, m) in different.items():
        if len(sizes_a[axis]) > 1 or pair.spec.kind(axis).rsplit("_", 1)[-1] != "ffn":
            raise AlignmentError(
                f"transport takes models of different feed-forward widths; they differ in axis {axis!r} ({n} and {m} units)."
            )
    return different


def _apart(pair: Pair, axis: str, p: Permutation) -> Float[Tensor, "n_a n_b"]:
    """Return the distance of every position of a from every unit of b, b's other axes being as p has them."""
    total: Tensor | float = 0.0
    for name, a in pair.a.items():
        b = pair.b[name]
        for k, (view_a, view_b) in _views(pair, name, axis):
            left, right = (
                unit_rows(t.double(), k, 1, unit_positions(view))
                for t, view in ((a, view_a), (apply_axes(pair.spec.axes(name), p, b), view_b))
            )
            left, right = (x / x.square().mean().sqrt().clamp_min(torch.finfo(x.dtype).tiny) for x in (left, right))
            total = total + torch.cdist(left, right).square()
    return torch.as_tensor(total).sqrt()


def _views(pair: Pair, name: str, axis: str) -> list[tuple[int, tuple[View, View]]]:
    """Return the items of a tensor's line with units of an axis, each with its views in a and in b."""
    sides = (pair.spec.views(name, tuple(side[name].shape)) for side in (pair.a, pair.b))
    views = [
        (k, (view_a, view_b))
        for k, both in enumerate(zip(*sides, strict=True))
        for view_a, view_b in zip(*both, strict=True)
        if view_a.names == (axis,)
    ]
    if len({k for k, _ in views}) > 1:
        raise AlignmentError(
            f"{name} has axis {axis!r} twice; transport between different widths is not defined for it."
        )
    return views


def _fitted(pair: Pair, name: str, plans: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor of b with its units moved to a's positions by the plans."""
    old, new = pair.b[name].double(), torch.zeros(pair.a[name].shape, dtype=torch.float64)
    for axis, carried in plans.items():
        for k, (view_a, view_b) in _views(pair, name, axis):
            n_a, n_b = carried.shape
            share = carried * (n_b if view_a.role == "in" else n_a)
            units = old.movedim(k, 0)[unit_positions(view_b).reshape(-1)]
            new.movedim(k, 0)[unit_positions(view_a).reshape(-1)] = torch.tensordot(share, units, dims=1)
    return new.to(pair.b[name].dtype)


def plan(cost: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Return the transport plan of least cost between n positions and m units of equal mass; its entries sum to one.

    Exact as long as both sides can be laid out as equally many copies, up to MAX_COPIES of them: the best plan between equal
    masses is an assignment of copies. Beyond that, the plan is smoothed by a little entropy (`entropic_plan`).
    """
    n, m = cost.shape
    copies = math.lcm(n, m)
    if copies > MAX_COPIES:
        return entropic_plan(cost)
    rows, columns = (torch.arange(copies) // (copies // size) for size in (n, m))
    taken = match_axis(-cost.double()[rows][:, columns])
    mass = torch.zeros(n, m, dtype=torch.float64)
    mass.index_put_((rows, columns[taken]), torch.tensor(1 / copies, dtype=torch.float64), accumulate=True)
    return mass


def entropic_plan(
    cost: Float[Tensor, "n m"], blur: float = ENTROPY_SHARE, rounds: int = MAX_ITERATIONS
) -> Float[Tensor, "n m"]:
    """Return the plan with the least cost minus blur * mean(cost) * entropy, by Sinkhorn iterations in logarithms."""
    n, m = cost.shape
    scores = -cost.double() / (blur * float(cost.mean()) or 1.0)
    for _ in range(rounds):
        before = scores
        scores = scores - scores.logsumexp(1, keepdim=True) - math.log(n)
        scores = scores - scores.logsumexp(0, keepdim=True) - math.log(m)
        if float((scores - before).abs().max()) < 1e-9:
            break
    return scores.exp()
