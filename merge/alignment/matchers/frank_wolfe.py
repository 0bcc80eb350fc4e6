"""Frank-Wolfe: all axes matched at once, on soft permutations, and made hard again at the end.

The objective of weight matching is maximised over doubly stochastic matrices, one for every axis. Each step goes from the
current point M towards the permutation S that the gradient likes best,

    S = argmax_S <grad J(M), S>,    M <- M + step (S - M),    step = argmax over [0, 1] of J(M + step (S - M)),

where S is one assignment an axis (of blocks and what is inside them together) and J along the line is a parabola. It ends
where a step gains next to nothing, and M is rounded by an assignment on its entries. An end of weight matching is of no use
as a start: where no axis alone can gain, S is M. So it starts twice, from the mixture in which every unit is everywhere
alike, and from one with a fifth of what weight matching found; the best of both and of weight matching itself is returned.

Function-preserving: what is returned is a permutation.

Source: Crisostomi et al. 2024, arXiv:2405.17897, algorithm 1 (for two models).
"""

from __future__ import annotations

from merge.alignment.matchers.weights import match_weights
from merge.alignment.pair import Alignment, Matcher, Pair, check_kinds
from merge.alignment.solvers.objective import Objective, weights_of
from merge.alignment.solvers.soft import Relaxation, Soft, along, toward
from merge.errors import AlignmentError
from merge.symmetry.permutation import Permutation, identity

# A step that gains less than this share of the objective is the last; and the most steps from one start.
REL_TOLERANCE, MAX_STEPS = 1e-6, 100
# How much of the second start is the mixture of everything.
BARYCENTRE_SHARE = 0.8
# An objective this near to that of equal models leaves nothing to search for.
EQUAL_MODELS = 1 - 1e-6


def match_frank_wolfe(pair: Pair) -> Matcher:
    """Return the matcher that aligns b to a by weights, all axes jointly; deterministic, never worse than `weights`."""
    weights, plain = weights_of(pair), match_weights(pair)

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        begun = plain(kinds)
        objective = Objective(pair, weights, pair.axes_of(kinds))
        if begun.objective[-1] > EQUAL_MODELS or not objective.tensor_names:
            return begun
        relaxed, still = Relaxation(objective), identity(pair.spec, pair.shapes)
        best, value = begun.permutation, begun.objective[-1] * objective.entries
        mixture = relaxed.barycentre()
        for start in (mixture, toward(relaxed.vertex(begun.permutation), mixture, BARYCENTRE_SHARE)):
            found = rounded(relaxed, maximised(relaxed, start)[0], still)
            reached = sum(objective.terms(objective.tensor_names, found).values())
            if reached > value + REL_TOLERANCE * abs(value):
                best, value = found, reached
        history = (*begun.objective, value / objective.entries)
        return Alignment(best, begun.kinds, history if best is not begun.permutation else begun.objective)

    return match


def maximised(relaxed: Relaxation, start: Soft) -> tuple[Soft, tuple[float, ...]]:
    """Return where Frank-Wolfe ends, and J at the start and after each step; never decreasing.

    Raises:
        AlignmentError: a tensor has more than two axes that move, so that J along a line is no parabola.
    """
    if relaxed.degree > 2:
        raise AlignmentError(
            f"frank-wolfe follows parabolas; {relaxed.objective.spec.family} has a tensor with {relaxed.degree} movable "
            "axes. Use --align weights."
        )
    soft, history = start, list[float]()
    for _ in range(MAX_STEPS):
        value, gradient = relaxed.gradient(soft)
        history.append(value)
        vertex = relaxed.vertex(relaxed.best(gradient))
        slope, end = along(gradient, soft, vertex), relaxed.value(vertex)
        step, gained = parabola(value, slope, end)
        if gained <= REL_TOLERANCE * abs(value):
            break
        soft = toward(soft, vertex, step)
    return soft, tuple(history)


def parabola(value: float, slope: float, end: float) -> tuple[float, float]:
    """Return where on [0, 1] a parabola is largest, and by how much it lies above its beginning.

    Args:
        value, slope: at 0.
        end: its value at 1.
    """
    bend = end - value - slope
    tried = [1.0] + ([-slope / (2 * bend)] if bend < 0 and 0 < -slope / (2 * bend) < 1 else [])
    gained, step = max((slope * x + bend * x * x, x) for x in tried)
    return (step, gained) if gained > 0 else (0.0, 0.0)


def rounded(relaxed: Relaxation, soft: Soft, still: Permutation) -> Permutation:
    """Return the permutation nearest to a soft one: an assignment on its entries."""
    return Permutation({**still.indices, **relaxed.best(soft).indices}, still.outer)
