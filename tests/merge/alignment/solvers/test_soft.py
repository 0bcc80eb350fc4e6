"""Soft permutations: at a permutation they are weight matching's objective, and their gradient is its slope."""

from __future__ import annotations

import pytest
import torch
from contracts.test_aligners import make_pair
from families import canonical_tensors
from families_more import CASES
from likeness import alike

from merge.alignment.matchers import frank_wolfe
from merge.alignment.matchers.frank_wolfe import maximised
from merge.alignment.matchers.universe import match_universe
from merge.alignment.matchers.weights import match_weights
from merge.alignment.pair import Pair
from merge.alignment.solvers.descent import PermutationDescent
from merge.alignment.solvers.objective import Objective, weights_of
from merge.alignment.solvers.soft import Relaxation, Soft, along, toward
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import Permutation, identity, random, restrict


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


@pytest.mark.slow
def test_the_barycentre_is_the_mean_of_every_permutation_of_a_rotary_model() -> None:
    """What has a fixed order inside heads stays in its place there: nothing goes where no permutation takes it."""
    config = CASES["ModernBertForSequenceClassification"]
    a = canonical_tensors(config, 0, torch.float32)
    pair = Pair(spec_for(config), a, a, config, str)
    relaxed = relaxation(pair)
    middle, count = relaxed.barycentre(), 1000
    generator, mean = torch.Generator().manual_seed(0), {names: torch.zeros_like(m) for names, m in middle.items()}
    for _ in range(count):
        for names, matrix in relaxed.vertex(random(pair.spec, pair.shapes, generator)).items():
            mean[names] += matrix / count
    assert {names[-1] for names in middle} >= {"-", "v0", "residual", "ffn0"}
    for names, matrix in middle.items():
        assert float((mean[names] - matrix).abs().max()) < 5 * (float(matrix.max()) / count) ** 0.5
        assert not bool(((mean[names] > 0) & (matrix == 0)).any())
        for dim in (0, 1):
            assert torch.allclose(matrix.sum(dim), torch.ones(len(matrix)), atol=1e-6)
    rotary = next(names for names in middle if names[-1] == "-")
    blocks, inside = relaxed.views[rotary].shape
    levels = middle[rotary].reshape(blocks, inside, blocks, inside)
    assert bool((levels.diagonal(0, 1, 3) == 1 / blocks).all())
    assert int((levels != 0).sum()) == blocks * blocks * inside


def test_no_table_has_a_tensor_with_more_than_two_movable_axes() -> None:
    """Or the objective along a line were no parabola; heads of two tensor axes count as one."""
    degrees = {}
    for name, config in CASES.items():
        spec = spec_for(config)
        degrees[name] = max(sum(not axis.fixed for axis in spec.axes(line)) for line in spec.lines)
    assert len(degrees) > 5
    assert max(degrees.values()) == 2


def climbed(objective: Objective, start: Permutation) -> tuple[Permutation, float]:
    end = PermutationDescent(objective).run(start, rel_tolerance=0.0)
    return end.permutation, end.history[-1]


def test_climbing_never_ends_below_and_stands_where_no_axis_gains() -> None:
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=3, other_seed=3)
    objective = Objective(pair, weights_of(pair), pair.movable)
    start = anywhere(pair, 0)
    end, value = climbed(objective, start)
    assert value > sum(objective.terms(objective.tensor_names, start).values()) + 0.05 * objective.entries
    assert value == pytest.approx(alike([pair], [end]) * objective.entries, rel=1e-6)
    again, same = climbed(objective, end)
    assert same == value
    assert all(torch.equal(again.indices[axis], end.indices[axis]) for axis in end.indices)


def test_the_second_start_of_frank_wolfe_leans_to_what_weight_matching_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of it, and of everything else the barycentre; the first start is the barycentre alone."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    kinds, starts = frozenset(pair.kinds()), list[Soft]()

    def told(relaxed: Relaxation, start: Soft) -> tuple[Soft, tuple[float, ...]]:
        starts.append(start)
        return maximised(relaxed, start)

    monkeypatch.setattr(frank_wolfe, "maximised", told)
    frank_wolfe.match_frank_wolfe(pair)(kinds)
    matched = relaxation(pair).vertex(match_weights(pair)(kinds).permutation)
    assert len(starts) == 2
    for names, matrix in matched.items():
        even = torch.full_like(matrix, 1 / len(matrix))
        assert torch.allclose(starts[0][names], even, atol=1e-7)
        assert torch.allclose(starts[1][names], 0.2 * matrix + 0.8 * even, atol=1e-7)
        assert float((starts[1][names] - starts[0][names]).abs().max()) > 0.1


@pytest.mark.parametrize(("other_seed", "least"), [(7, 0.0), (8, 0.01)])
def test_a_universe_keeps_the_higher_of_two_ends(other_seed: int, least: float) -> None:
    """Of one pair of strangers the ascent from weight matching ends higher, of the other that from the barycentre."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=other_seed)
    kinds = frozenset(pair.kinds())
    (found,) = match_universe([pair], kinds)
    alone = match_weights(pair)(kinds).permutation
    assert alike([pair], [found.permutation]) >= alike([pair], [alone]) + least - 1e-9
