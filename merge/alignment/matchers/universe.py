"""Universe: align many models to one common basis, so that alignments agree around every cycle of models.

Each model i has one permutation P_i into the common basis, and P_i^-1 P_j takes model j to model i: along any cycle of models
these multiply to the identity, by construction. The objective is the similarity of all pairs,

    F(P) = sum_{i<j} sum_t <P_i W_i, P_j W_j>_t / (rms(W_i,t) rms(W_j,t)),

one model at a time: for model i it is the objective of weight matching against the sum of all others. First on soft
permutations, a step of Frank-Wolfe for each model in turn; then these are rounded and every model is matched to the others
until none gains. The same ascent from alignments to the reference alone is tried too, and the result with the higher F is
kept. F never falls below that of the alignments to the reference. The reference keeps its units: results are relative to it.
A larger F need not be a better merge: of three and five small BERTs, averages were no better than by aligning each to one
reference (`benchmarks/many_models.py`). The advantage is that no model has to be that reference.

Function-preserving: every model is permuted only.

Source: Crisostomi et al. 2024, arXiv:2405.17897 (the universe, Frank-Wolfe); Ainsworth et al. 2023, arXiv:2209.04836,
algorithm 3 (each model to the others in turn).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from merge.alignment.matchers.frank_wolfe import parabola, rounded
from merge.alignment.matchers.weights import match_weights
from merge.alignment.pair import Alignment, Pair, check_kinds
from merge.alignment.solvers.descent import PermutationDescent
from merge.alignment.solvers.objective import Objective, Weights, weights_of
from merge.alignment.solvers.soft import Relaxation, Soft, along, mixed, toward
from merge.symmetry.permutation import Permutation, apply_axes, compose, identity, inverse

# A round over all models that gains less than this share of F is the last; and the most rounds.
REL_TOLERANCE, MAX_ROUNDS = 1e-6, 100

Tensors = dict[str, Tensor]


def match_universe(pairs: Sequence[Pair], kinds: frozenset[str]) -> list[Alignment]:
    """Return, for the b of each pair, the alignment to the reference, all optimised together.

    Args:
        pairs: each has the reference as a.
    """
    check_kinds(pairs[0], kinds)
    models, unmoved = _Models(pairs, kinds), identity(pairs[0].spec, pairs[0].shapes)
    star = [unmoved, *(match_weights(pair)(kinds).permutation for pair in pairs)]
    best = max((models.ascended(start) for start in (star, models.relaxed(unmoved))), key=models.value)
    history = [models.value([unmoved] * (len(pairs) + 1)) / models.entries]
    for permutations in (star, best):
        value = models.value(permutations) / models.entries
        history += [value] if value > history[-1] else []
    back, names = inverse(best[0]), tuple(kind for kind in pairs[0].kinds() if kind in kinds)
    return [Alignment(compose(back, p), names, tuple(history)) for p in best[1:]]


class _Models:
    """All the models of a run with every tensor at root mean square one; the reference is the first."""

    def __init__(self, pairs: Sequence[Pair], kinds: frozenset[str]) -> None:
        self.pair, self.movable = pairs[0], pairs[0].axes_of(kinds)
        first, *rest = [weights_of(pair) for pair in pairs]
        sides = [(first.a, first.scale_a), *((weights.b, weights.scale_b) for weights in (first, *rest))]
        names = Objective(self.pair, first, self.movable).tensor_names
        self.models: list[Tensors] = [{n: tensors[n] * scale[n] for n in names} for tensors, scale in sides]
        self.count = len(self.models)
        entries = sum(tensor.numel() for tensor in self.models[0].values())
        self.entries = max(entries * self.count * (self.count - 1) // 2, 1)

    def moved(self, k: int, p: Permutation) -> Tensors:
        """Return a model's tensors under a permutation."""
        return {name: apply_axes(self.pair.spec.axes(name), p, tensor) for name, tensor in self.models[k].items()}

    def value(self, permutations: Sequence[Permutation]) -> float:
        """Return F: half of |sum of all|^2 minus the sum of each |.|^2."""
        return self._similarity([self.moved(k, p) for k, p in enumerate(permutations)])

    def _similarity(self, moved: Sequence[Tensors]) -> float:
        total = 0.0
        for name in self.models[0]:
            stacked = torch.stack([tensors[name].double() for tensors in moved])
            total += float(stacked.sum(0).square().sum() - stacked.square().sum()) / 2
        return total

    def against(self, k: int, moved: Sequence[Tensors]) -> Objective:
        """Return the objective of weight matching of model k against the sum of the others as they are moved now."""
        others = [tensors for j, tensors in enumerate(moved) if j != k]
        total = {name: sum((other[name] for other in others[1:]), others[0][name]) for name in self.models[k]}
        ones = dict.fromkeys(total, 1.0)
        pair = replace(self.pair, a=total, b=self.models[k])
        return Objective(pair, Weights(total, self.models[k], ones, ones), self.movable)

    def ascended(self, start: Sequence[Permutation]) -> list[Permutation]:
        """Return the permutations after matching every model to the sum of the others, in turn, until F gains too little."""
        permutations = list(start)
        moved = [self.moved(k, p) for k, p in enumerate(permutations)]
        value = self._similarity(moved)
        for _ in range(MAX_ROUNDS):
            for k in range(self.count):
                descent = PermutationDescent(self.against(k, moved))
                permutations[k] = descent.run(permutations[k], rel_tolerance=0.0).permutation
                moved[k] = self.moved(k, permutations[k])
            before, value = value, self._similarity(moved)
            if value - before <= REL_TOLERANCE * abs(before):
                break
        return permutations

    def relaxed(self, unmoved: Permutation) -> list[Permutation]:
        """Return the rounded result of Frank-Wolfe, from the reference as it is and every other model at the barycentre."""
        moved = [dict(tensors) for tensors in self.models]
        softs: list[Soft] = [{}] * self.count
        solvers: list[Relaxation] = []
        for k in range(self.count):
            solvers.append(Relaxation(self.against(k, moved)))
            softs[k] = solvers[k].vertex(unmoved) if k == 0 else solvers[k].barycentre()
        for k in range(1, self.count):
            moved[k] = self._mixed(solvers[k], softs[k], k)
        value = self._similarity(moved)
        for _ in range(MAX_ROUNDS):
            for k in range(1, self.count):
                solver = Relaxation(self.against(k, moved))
                softs[k] = _step(solver, softs[k])
                moved[k] = self._mixed(solver, softs[k], k)
            before, value = value, self._similarity(moved)
            if value - before <= REL_TOLERANCE * abs(before):
                break
        return [unmoved, *(rounded(solvers[k], softs[k], unmoved) for k in range(1, self.count))]

    def _mixed(self, solver: Relaxation, soft: Soft, k: int) -> Tensors:
        return {name: mixed(tensor, solver.matrices(name, soft)) for name, tensor in self.models[k].items()}


def _step(solver: Relaxation, soft: Soft) -> Soft:
    value, gradient = solver.gradient(soft)
    vertex = solver.vertex(solver.best(gradient))
    return toward(soft, vertex, parabola(value, along(gradient, soft, vertex), solver.value(vertex))[0])
