"""Universe: many models brought into one basis together, so that alignments agree around every cycle.

Each model i has one permutation P_i into a common basis, and what takes model j to model i is P_i^-1 P_j: going round any
cycle of models ends where it began, by construction. What is maximised is how alike all pairs are,

    F(P) = sum_{i<j} sum_t <P_i W_i, P_j W_j>_t / (rms(W_i,t) rms(W_j,t)),

one model at a time: for model i it is the objective of weight matching against the sum of all others. First on soft
permutations, a step of Frank-Wolfe for each model in turn; then these are rounded and every model is matched to the others
until none gains. The same ascent from alignments to the reference alone is tried too, and the higher end is kept. F never
decreases from the alignments to the reference on. The reference itself keeps its units: results are relative to it.
A larger F need not be a better merge: of three and five small BERTs, averages were no better than by aligning each to one
reference (`benchmarks/many_models.py`). What is gained is that no model has to be that reference.

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

# A round over all models that gains less than this share is the last; and the most rounds.
REL_TOLERANCE, MAX_ROUNDS = 1e-6, 100

Tensors = dict[str, Tensor]


def match_universe(pairs: Sequence[Pair], kinds: frozenset[str]) -> list[Alignment]:
    """Return, for the b of each pair, the alignment to the reference, all found together.

    Args:
        pairs: each has the reference as a.
    """
    check_kinds(pairs[0], kinds)
    family = _Models(pairs, kinds)
    still = [identity(pairs[0].spec, pairs[0].shapes)] * (len(pairs) + 1)
    star = [still[0], *(match_weights(pair)(kinds).permutation for pair in pairs)]
    found = max((family.ascended(start) for start in (star, family.relaxed(still[0]))), key=family.value)
    history = [family.value(still) / family.entries]
    for one in (star, found):
        value = family.value(one) / family.entries
        history += [value] if value > history[-1] else []
    back, names = inverse(found[0]), tuple(kind for kind in pairs[0].kinds() if kind in kinds)
    return [Alignment(compose(back, one), names, tuple(history)) for one in found[1:]]


class _Models:
    """All the models of a run with every tensor at root mean square one; the reference is the first."""

    def __init__(self, pairs: Sequence[Pair], kinds: frozenset[str]) -> None:
        self.pair, self.movable = pairs[0], pairs[0].axes_of(kinds)
        first, *rest = [weights_of(pair) for pair in pairs]
        sides = [(first.a, first.scale_a), *((one.b, one.scale_b) for one in (first, *rest))]
        names = Objective(self.pair, first, self.movable).tensor_names
        self.models: list[Tensors] = [{n: tensors[n] * scale[n] for n in names} for tensors, scale in sides]
        self.count = len(self.models)
        entries = sum(tensor.numel() for tensor in self.models[0].values())
        self.entries = max(entries * self.count * (self.count - 1) // 2, 1)

    def moved(self, k: int, p: Permutation) -> Tensors:
        """Return a model's tensors under a permutation."""
        return {name: apply_axes(self.pair.spec.axes(name), p, tensor) for name, tensor in self.models[k].items()}

    def value(self, found: Sequence[Permutation]) -> float:
        """Return F: half of what the sum of all has above the sum of each with itself."""
        return self._alike([self.moved(k, p) for k, p in enumerate(found)])

    def _alike(self, placed: Sequence[Tensors]) -> float:
        total = 0.0
        for name in self.models[0]:
            own = torch.stack([tensors[name].double() for tensors in placed])
            total += float(own.sum(0).square().sum() - own.square().sum()) / 2
        return total

    def against(self, k: int, placed: Sequence[Tensors]) -> Objective:
        """Return the objective of model k against the sum of the others where they stand."""
        others = [tensors for j, tensors in enumerate(placed) if j != k]
        total = {name: sum((one[name] for one in others[1:]), others[0][name]) for name in self.models[k]}
        ones = dict.fromkeys(total, 1.0)
        pair = replace(self.pair, a=total, b=self.models[k])
        return Objective(pair, Weights(total, self.models[k], ones, ones), self.movable)

    def ascended(self, start: Sequence[Permutation]) -> list[Permutation]:
        """Return where matching every model to the sum of the others, in turn, ends."""
        found = list(start)
        placed = [self.moved(k, p) for k, p in enumerate(found)]
        value = self._alike(placed)
        for _ in range(MAX_ROUNDS):
            for k in range(self.count):
                found[k] = PermutationDescent(self.against(k, placed)).run(found[k], rel_tolerance=0.0).permutation
                placed[k] = self.moved(k, found[k])
            before, value = value, self._alike(placed)
            if value - before <= REL_TOLERANCE * abs(before):
                break
        return found

    def relaxed(self, still: Permutation) -> list[Permutation]:
        """Return where Frank-Wolfe ends, rounded; it begins with every model but the reference evenly everywhere."""
        placed = [dict(tensors) for tensors in self.models]
        softs: list[Soft] = [{}] * self.count
        solvers: list[Relaxation] = []
        for k in range(self.count):
            solvers.append(Relaxation(self.against(k, placed)))
            softs[k] = solvers[k].vertex(still) if k == 0 else solvers[k].barycentre()
        for k in range(1, self.count):
            placed[k] = self._mixed(solvers[k], softs[k], k)
        value = self._alike(placed)
        for _ in range(MAX_ROUNDS):
            for k in range(1, self.count):
                solver = Relaxation(self.against(k, placed))
                softs[k] = _step(solver, softs[k])
                placed[k] = self._mixed(solver, softs[k], k)
            before, value = value, self._alike(placed)
            if value - before <= REL_TOLERANCE * abs(before):
                break
        return [still, *(rounded(solvers[k], softs[k], still) for k in range(1, self.count))]

    def _mixed(self, solver: Relaxation, soft: Soft, k: int) -> Tensors:
        return {name: mixed(tensor, solver.matrices(name, soft)) for name, tensor in self.models[k].items()}


def _step(solver: Relaxation, soft: Soft) -> Soft:
    value, gradient = solver.gradient(soft)
    vertex = solver.vertex(solver.best(gradient))
    return toward(soft, vertex, parabola(value, along(gradient, soft, vertex), solver.value(vertex))[0])
