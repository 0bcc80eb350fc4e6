"""Frank-Wolfe: what one step does by hand, and what it finds beside weight matching."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from contracts.test_aligners import make_pair
from likeness import alike

from merge.alignment.matchers.frank_wolfe import match_frank_wolfe, maximised, parabola, rounded
from merge.alignment.matchers.weights import match_weights
from merge.alignment.solvers.objective import Objective, weights_of
from merge.alignment.solvers.soft import Relaxation, toward
from merge.symmetry.permutation import identity


@pytest.mark.parametrize("seed", range(20))
def test_the_step_is_the_top_of_the_parabola(seed: int) -> None:
    """Against a fine grid on [0, 1]; the gain is measured from the beginning."""
    value, slope, end = np.random.default_rng(seed).normal(size=3)
    grid = np.linspace(0, 1, 100001)
    curve = value + slope * grid + (end - value - slope) * grid**2
    step, gained = parabola(value, slope, end)
    assert gained == pytest.approx(curve.max() - value, abs=1e-8)
    assert value + slope * step + (end - value - slope) * step**2 == pytest.approx(curve.max(), abs=1e-8)


def test_the_relaxed_objective_never_falls_and_an_end_of_weight_matching_stands_still() -> None:
    """The reason for the start: where no axis alone gains, the best vertex is the point itself."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    kinds = frozenset(pair.kinds())
    relaxed = Relaxation(Objective(pair, weights_of(pair), pair.movable))
    _, history = maximised(relaxed, relaxed.barycentre())
    assert len(history) > 2
    assert all(later > earlier for earlier, later in pairwise(history))
    matched = relaxed.vertex(match_weights(pair)(kinds).permutation)
    assert len(maximised(relaxed, matched)[1]) == 1


def test_from_the_mixture_alone_a_planted_element_is_found_in_noise() -> None:
    """Without what weight matching knows; the mixture itself rounds to nothing of the kind."""
    pair, wanted = make_pair("BertForSequenceClassification", planted_seed=3, noise=0.5)
    relaxed, still = Relaxation(Objective(pair, weights_of(pair), pair.movable)), identity(pair.spec, pair.shapes)
    found = rounded(relaxed, maximised(relaxed, relaxed.barycentre())[0], still)
    assert all(torch.equal(found.indices[axis], index) for axis, index in wanted.indices.items())
    blind = rounded(relaxed, relaxed.barycentre(), still)
    assert blind.is_identity


def test_rounding_takes_the_heavier_of_two_permutations() -> None:
    pair, wanted = make_pair("BertForSequenceClassification", planted_seed=3)
    relaxed, still = Relaxation(Objective(pair, weights_of(pair), pair.movable)), identity(pair.spec, pair.shapes)
    for share, expected in ((0.4, wanted), (0.6, still)):
        found = rounded(relaxed, toward(relaxed.vertex(wanted), relaxed.vertex(still), share), still)
        assert all(torch.equal(found.indices[axis], expected.indices[axis]) for axis in pair.movable)


@pytest.mark.slow
def test_it_is_never_worse_than_weight_matching_and_better_on_strangers() -> None:
    """The objective it reports is that of its permutation; on some unrelated models the joint search ends higher."""
    gained = []
    for other_seed in (5, 6, 7, 8):
        pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=other_seed)
        kinds = frozenset(pair.kinds())
        jointly, alone = match_frank_wolfe(pair)(kinds), match_weights(pair)(kinds)
        assert jointly.objective[-1] == pytest.approx(alike([pair], [jointly.permutation]), abs=1e-6)
        gained.append(jointly.objective[-1] - alone.objective[-1])
    assert min(gained) >= 0
    assert max(gained) > 1e-4
