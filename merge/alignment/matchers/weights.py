"""Weight matching: coordinate descent on the inner product of the two models' weights, `merge.alignment.solvers.objective`.

One axis at a time, everything else held; heads and the units inside them together, by an assignment of both. The residual is
matched first, on the embeddings, then heads and feed-forward units on that, layer by layer. An axis is matched again only
when an axis that its gains depend on has changed. With maps as well: `merge.alignment.matchers.rotations`.

Source: Ainsworth et al. 2023, arXiv:2209.04836, section 3.2 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from merge.alignment.pair import Alignment, Matcher, Pair, check_kinds
from merge.alignment.solvers.descent import Descended, PermutationDescent, best_of_restarts
from merge.alignment.solvers.objective import Objective, weights_of
from merge.symmetry.permutation import Permutation, identity

Start = Callable[[frozenset[str]], Permutation]


def match_weights(pair: Pair, circuits: bool = False, start: Start | None = None) -> Matcher:
    """Return the matcher that aligns b to a by weights alone; it needs no data and is deterministic.

    With restarts (`pair.settings.restarts`) it descends again from the best permutation so far, with a third of the units of
    the busiest axis shuffled (the residual, where it moves) and the axes in random order; the best of all is kept.

    Args:
        circuits: whether heads are matched by circuits, products of weights that no basis inside heads can change, instead
            of by the best order of the rows inside them (exact for permutations).
        start: kinds of axes -> the permutation from which the first descent begins; None for a first pass; the identity
            where that is better.
    """
    weights = weights_of(pair)

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        objective, unmoved = Objective(pair, weights, pair.axes_of(kinds)), identity(pair.spec, pair.shapes)
        descent = PermutationDescent(objective, circuits)
        begin = descent.first_pass(unmoved) if start is None else start(kinds)
        at_identity, first = _from_the_better(descent, unmoved, begin)
        permutation, history = first.permutation, (at_identity, *first.history)
        generator = torch.Generator().manual_seed(pair.settings.seed)

        def attempt(best: Permutation, order: Sequence[str]) -> tuple[Permutation, float]:
            again = descent.run(descent.shuffled(best, generator), order=order)
            return again.permutation, again.history[-1]

        best = permutation, history[-1]
        permutation, value = best_of_restarts(best, descent.coordinates, pair.settings.restarts, generator, attempt)
        if permutation is not best[0]:
            history = (at_identity, value)
        values = tuple(value / objective.entries for value in history)
        return Alignment(permutation, tuple(k for k in pair.kinds() if k in kinds), values)

    return match


def match_by_circuits(pair: Pair) -> Matcher:
    """Return the matcher that matches heads by their circuits, whatever the bases inside them, and all else by rows."""
    return match_weights(pair, circuits=True)


def _from_the_better(descent: PermutationDescent, *starts: Permutation) -> tuple[float, Descended]:
    """Return J of the identity, which is the first start, and the descent from the second, or from it where it is no worse."""
    objective = descent.objective
    unmoved, begin = ((start, objective.terms(objective.tensor_names, start)) for start in starts)
    at_identity = sum(unmoved[1].values())
    return at_identity, descent.run(*(begin if sum(begin[1].values()) > at_identity else unmoved))
