"""Soft permutations: at a permutation they are weight matching's objective, and their gradient is its slope."""

from __future__ import annotations

import pytest
import torch
from contracts.test_aligners import make_pair
from families_more import CASES
from likeness import alike

from merge.alignment.ascent import climb
from merge.alignment.objective import Objective, weights_of
from merge.alignment.pair import Pair
from merge.alignment.soft import Relaxation, along, toward
from merge.architectures import spec_for
from merge.permutation import Permutation, identity, random, restrict


def relaxation(pair: Pair) -> Relaxation:
    return Relaxation(Objective(pair, weights_of(pair), pair.movable))


def anywhere(pair: Pair, seed: int) -> Permutation:
    drawn = random(pair.spec, pair.shapes, torch.Generator().manual_seed(seed))
    return restrict(drawn, set(pair.movable))


def test_at_a_permutation_the_value_is_the_normalised_inner_product() -> None:
    """Recomputed in numpy from the moved tensors; another permutation has another value."""
    pair, _ = make_pair("BertForMaskedLM", planted_seed=None, other_seed=5)
    relaxed = relaxation(pair)
    values = [relaxed.value(relaxed.vertex(anywhere(pair, seed))) / relaxed.objective.entries for seed in (0, 1)]
    for seed, value in enumerate(values):
        assert value == pytest.approx(alike([pair], [anywhere(pair, seed)]), abs=1e-6)
    assert abs(values[0] - values[1]) > 1e-4


def test_the_slope_is_that_of_the_value() -> None:
    """Central differences between a mixture and a permutation, on a line inside the polytope."""
    pair, _ = make_pair("BertForMaskedLM", planted_seed=None, other_seed=5)
    relaxed = relaxation(pair)
    start = toward(relaxed.vertex(anywhere(pair, 0)), relaxed.barycentre(), 0.5)
    end = relaxed.vertex(anywhere(pair, 1))
    slope = along(relaxed.gradient(start)[1], start, end)
    ahead, behind = (relaxed.value(toward(start, end, step)) for step in (0.01, -0.01))
    assert slope == pytest.approx((ahead - behind) / 0.02, rel=1e-3)
    assert abs(slope) > 1e-2


def test_what_the_gradient_likes_best_is_the_planted_element() -> None:
    """On a planted copy the gradient at the answer is largest at the answer; from nothing matched it is elsewhere."""
    pair, wanted = make_pair("BertForSequenceClassification", planted_seed=3)
    relaxed = relaxation(pair)
    best = relaxed.best(relaxed.gradient(relaxed.vertex(wanted))[1])
    assert all(torch.equal(best.indices[axis], wanted.indices[axis]) for axis in best.indices)
    assert set(best.indices) == set(pair.movable)
    still = identity(pair.spec, pair.shapes)
    first = relaxed.best(relaxed.gradient(relaxed.vertex(still))[1])
    assert any(not torch.equal(first.indices[axis], wanted.indices[axis]) for axis in first.indices)


def test_every_mixture_is_doubly_stochastic() -> None:
    """Rows and columns of every matrix sum to one, of heads and of what is inside them too."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None)
    relaxed = relaxation(pair)
    soft = toward(relaxed.vertex(anywhere(pair, 0)), relaxed.barycentre(), 0.3)
    assert {names[0] for names in soft} >= {"residual", "heads0", "ffn1"}
    for matrix in soft.values():
        for dim in (0, 1):
            assert torch.allclose(matrix.sum(dim), torch.ones(len(matrix)), atol=1e-6)


def test_no_table_has_a_tensor_with_more_than_two_movable_axes() -> None:
    """Or the objective along a line were no parabola; heads of two tensor axes count as one."""
    degrees = {}
    for name, config in CASES.items():
        spec = spec_for(config)
        degrees[name] = max(sum(not axis.fixed for axis in spec.axes(line)) for line in spec.lines)
    assert len(degrees) > 5
    assert max(degrees.values()) == 2


def test_climbing_never_ends_below_and_stands_where_no_axis_gains() -> None:
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=3, other_seed=3)
    objective = Objective(pair, weights_of(pair), pair.movable)
    start = anywhere(pair, 0)
    end, value = climb(objective, start)
    assert value > sum(objective.shares(objective.moving, start).values()) + 0.05 * objective.entries
    assert value == pytest.approx(alike([pair], [end]) * objective.entries, rel=1e-6)
    again, same = climb(objective, end)
    assert same == value
    assert all(torch.equal(again.indices[axis], end.indices[axis]) for axis in end.indices)
