"""Factors: the units that a dimension of a tensor is made of, and which factors must be permuted alike.

A dimension is a row-major product of factors: units of one kind, such as heads, or positions inside a head. A view
splits a factor into a product, a slice cuts it into parts that are next to one another, and an operation that pairs two
dimensions unites their factors. A factor that is still whole at the end of the run may be permuted, unless something
distinguishes its units by position: then it is fixed.

The order inside a block may differ from block to block as long as both keep together: `contexts` holds the factors that
an order may depend on, `lost` those of them that were summed away or mixed while the factor lived on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(eq=False)
class Factor:
    """Units of one kind. United factors share one root, which holds the facts of all of them.

    Attributes:
        size: number of units.
        free: every unit holds the same values, so that any order is right.
        fixed: why the order of the units is fixed; empty where it is not.
        product: the factors that this one was split into.
        parts: the parts that it was cut into.
        contexts: for each factor united here, the factors that its order may depend on; only what all allow is allowed.
        lost: factors that its order may no longer depend on.
        owner: the factor that was split into a product with this one.
        members: number of factors united here that are not free.
        scored: it was summed over in a batched product, as queries with keys.
        united: the factor that this one was united with, a step nearer to the root; None for a root.
    """

    size: int
    free: bool = False
    fixed: str = ""
    product: tuple[Factor, ...] = ()
    parts: tuple[Part, ...] = ()
    contexts: list[tuple[Factor, ...]] = field(default_factory=list)
    lost: set[Factor] = field(default_factory=set)
    owner: Factor | None = None
    members: int = 1
    scored: bool = False
    united: Factor | None = None

    @property
    def root(self) -> Factor:
        node = self
        while node.united is not None:
            node = node.united
        return node


@dataclass(frozen=True)
class Part:
    """Units [start, stop) of a factor.

    Attributes:
        factors: the factors that these units are the product of.
        inside: factor inside the units before the cut -> its copy inside this part, which may have another order.
    """

    start: int
    stop: int
    factors: tuple[Factor, ...]
    inside: Mapping[Factor, Factor] = field(default_factory=dict)


Dimension = Sequence[Factor]


def size(factors: Dimension) -> int:
    """Return the number of units of a dimension."""
    return math.prod(f.size for f in factors)


def flat(factors: Dimension) -> list[Factor]:
    """Return the roots that a dimension is the product of, as far as split by now; without factors of one unit."""
    out: list[Factor] = []
    for factor in factors:
        root = factor.root
        if root.size != 1:
            out += flat(root.product) if root.product else [root]
    return out


def fix(factors: Iterable[Factor], why: str) -> None:
    """Fix the order of these factors, and of all that they were split or cut into."""
    for factor in factors:
        root = factor.root
        if not root.fixed:
            root.fixed, root.free = why, False
            fix(root.product, why)
            for part in root.parts:
                fix((*part.factors, *part.inside.values()), why)


def fixed(count: int, why: str) -> Factor:
    """Return a new factor whose order is fixed."""
    return Factor(count, fixed=why)


def divide(factor: Factor, outer: int) -> bool:
    """Split a factor into `outer` blocks; return False where it is cut into parts or its size does not divide."""
    if factor.parts or factor.size % outer:
        return False
    children = tuple(Factor(n, free=factor.free, fixed=factor.fixed) for n in (outer, factor.size // outer))
    for child, other in (children, children[::-1]):
        child.contexts = [(*context, other) for context in factor.contexts]
        child.lost, child.owner = set(factor.lost), factor
    factor.product = children
    return True


def lose(removed: Dimension, kept: Iterable[Dimension]) -> None:
    """Note that `removed` was summed away or mixed while `kept` lived on: no order in `kept` may depend on it."""
    leaves = set(flat(removed))
    for dimension in kept:
        for factor in flat(dimension):
            factor.lost |= leaves - {factor}


def unite(a: Dimension, b: Dimension, why: str) -> None:
    """Unite two dimensions of one size, so that they are permuted alike; factors that do not line up are fixed."""
    left, right = flat(a)[::-1], flat(b)[::-1]
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size == y.size:
            _unite_roots(x, y, why)
            continue
        large, small, rest = (x, y, left) if x.size > y.size else (y, x, right)
        (right if large is x else left).append(small)
        if not divide(large, small.size):
            fix((*left, *right, large), f"{why}: {large.size} units do not fall into blocks of {small.size}")
            return
        rest += flat([large])[::-1]
    fix((*left, *right), why)


def _unite_roots(x: Factor, y: Factor, why: str) -> None:
    """Unite two roots of one size; the one with more facts, not free or cut into parts, becomes the root of both."""
    if x is y:
        return
    if (x.free, x.fixed != "") > (y.free, y.fixed != "") or (y.parts and not x.parts and not y.free):
        x, y = y, x
    cuts = [[(p.start, p.stop) for p in f.parts] for f in (x, y)]
    if x.parts and y.parts:
        if cuts[0] != cuts[1] or any(p.inside for p in (*x.parts, *y.parts)):
            fix((x, y), f"{why}: cut at different places")
        else:
            for p, q in zip(x.parts, y.parts, strict=True):
                unite(p.factors, q.factors, why)
    for factor, other in ((x, y), (y, x)):
        if factor.fixed:
            fix((other,), factor.fixed)
    if not y.free:
        x.contexts += y.contexts
        x.members += y.members
    x.lost |= y.lost
    x.scored |= y.scored
    y.united = x


def inner_factors(factor: Factor) -> list[Factor]:
    """Return the factors inside every unit of this one, in the tensor where it was split."""
    child, out = factor, list[Factor]()
    while (owner := child.owner) is not None:
        position = next(i for i, f in enumerate(owner.product) if f is child)
        out += list(owner.product[position + 1 :])
        child = owner
    return out


def cut(factor: Factor, start: int, stop: int, why: str) -> Part:
    """Return units [start, stop) of a root as a part of its own, cutting the root there.

    The factors inside the units (the heads inside q, k and v) become separate copies in every part.
    """
    if factor.fixed or factor.free:
        like = Factor(stop - start, free=factor.free, fixed=factor.fixed)
        return Part(start, stop, (like,))
    inside = inner_factors(factor)
    if inside and any(f.members > 1 for f in (factor, *flat(inside))):
        fix((factor,), f"{why}: a part of units that others are paired with")
        return cut(factor, start, stop, why)
    if not factor.parts:
        factor.parts = (Part(0, factor.size, (factor,)),)
    width = stop - start
    even = inside and factor.size % width == 0 and start % width == 0
    edges = sorted(
        {*(range(0, factor.size, width) if even else ()), 0, start, stop, factor.size}
        | {e for p in factor.parts for e in (p.start, p.stop)}
    )
    parts: list[Part] = []
    for a, b in pairwise(edges):
        old = next(p for p in factor.parts if p.start <= a and b <= p.stop)
        if (old.start, old.stop) == (a, b) and old.factors != (factor,):
            parts.append(old)
        elif old.factors != (factor,) and (inside or len(old.factors) != 1):
            factor.parts = ()
            fix((factor, *inside), f"{why}: cut twice")
            return cut(factor, start, stop, why)
        elif old.factors == (factor,):
            parts.append(_part(factor, inside, a, b))
        else:
            finer = cut(old.factors[0].root, a - old.start, b - old.start, why)
            parts.append(Part(a, b, finer.factors))
    factor.parts = tuple(parts)
    chosen = [p for p in factor.parts if start <= p.start and p.stop <= stop]
    if len(chosen) == 1:
        return chosen[0]
    if inside:
        fix((factor, *inside), f"{why}: several parts at once")
        return cut(factor, start, stop, why)
    moved = tuple(Part(p.start - start, p.stop - start, p.factors) for p in chosen)
    return Part(start, stop, (Factor(stop - start, parts=moved),))


def _part(factor: Factor, inside: Sequence[Factor], start: int, stop: int) -> Part:
    """Return a new part, with a copy of every factor inside its units."""
    units = Factor(stop - start, lost=set(factor.lost))
    copies = {leaf: Factor(leaf.size, fixed=leaf.fixed, lost=set(leaf.lost)) for leaf in flat(inside)}
    copy_of = {**copies, factor: units}

    def with_copies(context: tuple[Factor, ...]) -> tuple[Factor, ...]:
        return tuple(copy_of.get(f, f) for whole in context for f in flat([whole]))

    for old, new in copy_of.items():
        new.contexts = [with_copies(context) for context in old.contexts]
    return Part(start, stop, (units,), copies)


def joined(dimensions: Sequence[Dimension]) -> Factor:
    """Return the factor of dimensions one after another, as `cat` makes it."""
    parts, start = [], 0
    for dimension in dimensions:
        parts.append(Part(start, start + size(dimension), tuple(dimension)))
        start = parts[-1].stop
    reasons = [f.fixed for d in dimensions for f in flat(d)]
    if all(reasons):
        return fixed(start, reasons[0] if reasons else "units told apart by their place")
    return Factor(start, parts=tuple(parts))


def contexts(factor: Factor) -> set[Factor]:
    """Return the factors, not fixed, that the order of a root may depend on."""
    sets = [{leaf for whole in context for leaf in flat([whole])} for context in factor.contexts]
    lost = {leaf for whole in factor.lost for leaf in flat([whole])}
    common = set.intersection(*sets) if sets else set()
    return {f for f in common - lost if not f.fixed}
