"""Silent units: those that never vary on the text, whose activations do not tell them apart; their weights do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.pair import Pair, in_canonical_form
from merge.alignment.solvers.assignment import match_axis
from merge.alignment.solvers.objective import Objective, weights_of
from merge.symmetry.permutation import Permutation


def settle_silent(
    pair: Pair, permutation: Permutation, gains: Mapping[str, Float[Tensor, "n n"]]
) -> tuple[Permutation, tuple[str, ...]]:
    """Return the permutation with units that never vary in either model matched by their weights, and a note on them.

    A unit that never fires, or always gives the same, correlates with nothing: any match of it with another such unit has
    the same gain.

    Args:
        permutation: as activations have it.
        gains: axis that is not split -> correlations; a silent unit's are all 0.
    """
    places = {axis: _silent(gain, permutation.indices[axis]) for axis, gain in gains.items()}
    places = {axis: silent for axis, silent in places.items() if len(silent) > 1}
    if not places:
        return permutation, ()
    if pair.merged is None:
        pair = in_canonical_form(pair)
    objective = Objective(pair, weights_of(pair), pair.movable)
    indices = dict(permutation.indices)
    for axis, silent in places.items():
        by_weights = objective.gains(axis, Permutation(indices, permutation.outer))
        gain = sum((g for g in by_weights.values()), torch.zeros(())).double()
        units = indices[axis][silent]
        index = indices[axis].clone()
        index[silent] = units[match_axis(gain[silent][:, units])]
        indices[axis] = index
    count, kinds = sum(map(len, places.values())), sorted({pair.spec.kind(axis) for axis in places})
    note = f"{count} units ({', '.join(kinds)}) never vary on the text in either model; their weights told them apart"
    return replace(permutation, indices=indices), (note,)


def _silent(gain: Float[Tensor, "n n"], index: Tensor) -> Tensor:
    """Return the places of a's silent units that a silent unit of b was matched to."""
    silent_a, silent_b = _zero_rows(gain), _zero_rows(gain.T)
    return torch.nonzero(silent_a & silent_b[index]).flatten()


def _zero_rows(gain: Float[Tensor, "n n"]) -> Tensor:
    """Return a mask of the rows that are zero; those whose first entry is not zero are not read."""
    zero = gain[:, 0] == 0
    rows = zero.nonzero().flatten()
    zero[rows] = (gain[rows] == 0).all(1)
    return zero
