"""Ascent: from a permutation to one that no axis alone can better, in the objective of weight matching.

What weight matching does from its own beginning, here from any: other searches end with it.
"""

from __future__ import annotations

from merge.alignment.solvers.assignment import match_axis
from merge.alignment.solvers.blocks import match_blocks
from merge.alignment.solvers.objective import Objective
from merge.symmetry.permutation import Permutation

MAX_SWEEPS = 50
# A change that gains less than this for each entry is rounding.
TOLERANCE = 1e-12


def climb(objective: Objective, start: Permutation, sweeps: int = MAX_SWEEPS) -> tuple[Permutation, float]:
    """Return the permutation after matching every axis in turn until none gains, and J there; never below the start's."""
    p, shares = start, objective.shares(objective.moving, start)
    for _ in range(sweeps):
        before = p
        for move, tensors in objective.tensors.items():
            gains = objective.gains(move, p)
            found = {move: match_axis(gains[move,])} if set(gains) == {(move,)} else match_blocks(gains)
            tried = Permutation({**p.indices, **found}, p.outer)
            new = objective.shares(tensors, tried)
            if sum(new.values()) - sum(shares[name] for name in tensors) > TOLERANCE * objective.entries:
                p, shares = tried, shares | new
        if p is before:
            break
    return p, sum(shares.values())
