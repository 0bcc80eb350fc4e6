"""Frank-Wolfe: all axes matched at once, on soft permutations, and rounded at the end.

The objective of weight matching is maximised over doubly stochastic matrices, one for every axis. Each step goes from the
current point M towards the permutation S with the largest inner product with the gradient,

    S = argmax_S <grad J(M), S>,    M <- M + step (S - M),    step = argmax over [0, 1] of J(M + step (S - M)),

where S is one assignment an axis (of blocks and the orders inside them together) and J along the line is a parabola. It ends
when a step gains too little, and M is rounded by an assignment on its entries. The result of weight matching cannot be the
start: where no axis alone can gain, S is M. So it starts twice, from the barycentre (the uniform mixture), and from a fifth
of weight matching's result and four fifths of the barycentre; the best of both and of weight matching itself is returned.

Function-preserving: the result is a permutation.

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
# Share of the barycentre in the second start.
BARYCENTRE_SHARE = 0.8
# From this objective on the models are as good as equal, and nothing is left to gain.
EQUAL_MODELS = 1 - 1e-6


def match_frank_wolfe(pair: Pair) -> Matcher:
    """Return the matcher that aligns b to a by weights, all axes jointly; deterministic, never worse than `weights`."""
    weights, plain = weights_of(pair), match_weights(pair)

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        by_weights = plain(kinds)
        objective = Objective(pair, weights, pair.axes_of(kinds))
        if by_weights.objective[-1] > EQUAL_MODELS or not objective.tensor_names:
            return by_weights
        relaxed, unmoved = Relaxation(objective), identity(pair.spec, pair.shapes)
        best, value = by_weights.permutation, by_weights.objective[-1] * objective.entries
        mixture = relaxed.barycentre()
        for start in (mixture, toward(relaxed.vertex(by_weights.permutation), mixture, BARYCENTRE_SHARE)):
            candidate = rounded(relaxed, maximised(relaxed, start)[0], unmoved)
            reached = sum(objective.terms(objective.tensor_names, candidate).values())
            if reached > value + REL_TOLERANCE * abs(value):
                best, value = candidate, reached
        history = (*by_weights.objective, value / objective.entries)
        return Alignment(
            best, by_weights.kinds, history if best is not by_weights.permutation else by_weights.objective
        )

    return match


def maximised(relaxed: Relaxation, start: Soft) -> tuple[Soft, tuple[float, ...]]:
    """Return the soft permutation after Frank-Wolfe, and J at the start and after each step; never decreasing.

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
    """Return the point of [0, 1] at which a parabola is largest, and by how much it exceeds its value at 0.

    Args:
        value, slope: at 0.
        end: its value at 1.
    """
    curvature = end - value - slope
    candidates = [1.0] + ([-slope / (2 * curvature)] if curvature < 0 and 0 < -slope / (2 * curvature) < 1 else [])
    gained, step = max((slope * x + curvature * x * x, x) for x in candidates)
    return (step, gained) if gained > 0 else (0.0, 0.0)


def rounded(relaxed: Relaxation, soft: Soft, unmoved: Permutation) -> Permutation:
    """Return the permutation nearest to a soft one: an assignment on its entries."""
    return Permutation({**unmoved.indices, **relaxed.best(soft).indices}, unmoved.outer)
