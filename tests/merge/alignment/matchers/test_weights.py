"""Weight matching: its objective by an independent formula, and what its details are for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contracts.test_aligners import make_pair
from tiny import bert_config, random_tensors

from merge.alignment.matchers import aligner
from merge.alignment.matchers.weights import match_weights
from merge.alignment.pair import Pair
from merge.alignment.solvers import descent
from merge.alignment.solvers.circuits import circuit_gains
from merge.alignment.solvers.descent import Descended, PermutationDescent
from merge.alignment.solvers.objective import Objective, weights_of
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import Permutation, apply, identity, random, restrict


def objective_of(pair: Pair, p: Permutation) -> float:
    """Mean over entries of normalised products, in numpy: tensors that no axis can move are left out."""
    moved = apply(pair.spec, p, pair.b)
    total, entries = 0.0, 0
    for name in pair.a:
        if all(axis.fixed or set(axis.axis_names()) <= pair.spec.named for axis in pair.spec.axes(name)):
            continue
        left, right = (t.numpy().astype(np.float64) for t in (pair.a[name], moved[name]))
        if left.ndim == 1:
            left, right = left - left.mean(), right - right.mean()
        scale = np.sqrt((left**2).mean() * (right**2).mean())
        total += (left * right).sum() / scale
        entries += left.size
    return total / entries


def asking(pair: Pair, restarts: int) -> Pair:
    return replace(pair, settings=replace(pair.settings, restarts=restarts))


def test_the_objective_is_the_normalised_inner_product() -> None:
    """Recomputed from the permutation that was found, and higher than where nothing or anything moves."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    found = match_weights(pair)(frozenset(pair.kinds()))
    value = objective_of(pair, found.permutation)
    assert abs(value - found.objective[-1]) < 1e-6
    assert value > objective_of(pair, identity(pair.spec, pair.shapes)) + 0.05
    anything = restrict(random(pair.spec, pair.shapes, torch.Generator().manual_seed(0)), set(pair.movable))
    assert value > objective_of(pair, anything) + 0.05


def test_the_result_is_a_coordinate_optimum() -> None:
    """Swapping any two units of any one axis never raises the objective: no axis was left half done."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    found = match_weights(pair)(frozenset(pair.kinds())).permutation
    best, tried = objective_of(pair, found), 0
    for axis in ("residual", "ffn0", "pooler", "heads1"):
        for i, j in ((0, 1), (1, 3), (2, 3)):
            index = found.indices[axis].clone()
            index[[i, j]] = index[[j, i]]
            swapped = Permutation({**found.indices, axis: index}, found.outer)
            assert objective_of(pair, swapped) <= best + 1e-9
            tried += 1
    assert tried == 12


def test_rescaling_a_tensor_changes_nothing() -> None:
    """Tensors are normalised: a model trained with larger weights in one place does not shout the others down."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    louder = {n: t * (1000 if n.endswith("word_embeddings.weight") else 1) for n, t in pair.b.items()}
    plain, loud = (match_weights(p)(frozenset(pair.kinds())) for p in (pair, replace(pair, b=louder)))
    assert all(
        torch.equal(plain.permutation.indices[a], loud.permutation.indices[a]) for a in plain.permutation.indices
    )


def test_constant_vectors_say_nothing() -> None:
    """Fresh LayerNorms are all ones and zeros; they must neither divide by zero nor move a unit."""
    pair, wanted = make_pair("BertForSequenceClassification", planted_seed=3)
    flat = {n: torch.full_like(t, 1.0) for n, t in pair.a.items() if "LayerNorm" in n}
    found = match_weights(replace(pair, a={**pair.a, **flat}, b={**pair.b, **flat}))(frozenset(pair.kinds()))
    assert all(torch.equal(found.permutation.indices[a], wanted.indices[a]) for a in wanted.indices)


def test_the_first_pass_builds_on_what_is_matched_already() -> None:
    """Embeddings alone fix the residual, that the layers: a planted copy is found before the first sweep, noise and all."""
    pair, wanted = make_pair("BertForSequenceClassification", planted_seed=3, noise=1.0)
    objective = match_weights(pair)(frozenset(pair.kinds())).objective
    assert objective[1] == pytest.approx(objective_of(pair, wanted), abs=1e-6)
    assert objective[1] > objective[0] + 0.1


@pytest.mark.parametrize("other_seed", [5, 6])
def test_products_in_float32_find_what_float64_finds(other_seed: int) -> None:
    """The same permutation, also of unrelated models, where gains are close; the objective is summed in float64 anyway."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=other_seed)
    double = replace(pair, **{side: {n: t.double() for n, t in getattr(pair, side).items()} for side in "ab"})
    single, exact = (match_weights(p)(frozenset(pair.kinds())) for p in (pair, double))
    for axis, index in exact.permutation.indices.items():
        assert torch.equal(single.permutation.indices[axis], index)
    assert single.objective == pytest.approx(exact.objective, abs=1e-6)
    assert not exact.permutation.is_identity


@pytest.mark.slow
def test_restarts_find_higher_optima_and_the_seed_decides() -> None:
    """Unrelated models have many optima: the best of several descents is kept, the same for the same seed."""
    gained = []
    for other_seed in (5, 7):
        pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=other_seed)
        once, several, again = (match_weights(asking(pair, restarts=n))(frozenset(pair.kinds())) for n in (0, 12, 12))
        assert several.objective == again.objective
        assert several.objective[0] == once.objective[0]
        assert objective_of(pair, several.permutation) == pytest.approx(several.objective[-1], abs=1e-6)
        gained.append(several.objective[-1] - once.objective[-1])
    assert min(gained) >= 0
    assert max(gained) > 1e-4


def test_axes_that_share_no_tensor_are_matched_side_by_side() -> None:
    """With three threads what one finds; the residual, which all others read, stands alone."""
    config = bert_config(num_hidden_layers=2)
    a, b = (random_tensors(config, seed) for seed in (0, 1))
    pair = Pair(spec_for(config), a, b, config, str)
    objective = Objective(pair, weights_of(pair), pair.axes_of(frozenset(pair.kinds())))
    runs = PermutationDescent(objective).runs(tuple(objective.occurrences))
    assert [set(run) for run in runs] == [{"residual"}, {"heads0", "ffn0", "heads1", "ffn1", "pooler"}]

    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(match_weights(pair)(frozenset(pair.kinds())))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    one, three = found
    assert not one.permutation.is_identity
    assert all(torch.equal(one.permutation.indices[k], index) for k, index in three.permutation.indices.items())
    assert one.objective == pytest.approx(three.objective, rel=1e-9)


def test_a_descent_begins_at_the_identity_where_that_is_better() -> None:
    """b is a in much noise, its embeddings anew: what these say of the residual leads away from where the units are."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, noise=1.5)
    other, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    anew = {n: t for n, t in other.b.items() if "embeddings" in n and "LayerNorm" not in n}
    pair = replace(pair, b={**pair.b, **anew})
    found = match_weights(pair)(frozenset(pair.kinds()))
    assert len(anew) == 3
    assert found.permutation.is_identity
    assert found.objective[0] == pytest.approx(objective_of(pair, found.permutation), abs=1e-6)
    objective = Objective(pair, weights_of(pair), pair.movable)
    search = PermutationDescent(objective)
    ended = search.run(search.first_pass(identity(pair.spec, pair.shapes)))
    assert ended.history[-1] / objective.entries < found.objective[0] - 0.1


def test_circuits_are_asked_again_in_every_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a restart shuffles is to be told apart anew, but once: in one descent as in the first, where anything changed."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    asked: list[str] = []

    def counted(objective: Objective, move: str, p: Permutation) -> dict[tuple[str, ...], torch.Tensor]:
        asked.append(move)
        return circuit_gains(objective, move, p)

    monkeypatch.setattr(descent, "circuit_gains", counted)
    for restarts, least in ((0, 1), (2, 2)):
        asked.clear()
        match_weights(asking(pair, restarts=restarts), circuits=True)(frozenset(pair.kinds()))
        counts = [asked.count(move) for move in ("heads0", "heads1")]
        assert least <= min(counts) <= max(counts) <= 1 + restarts


def test_circuits_are_an_aligner_of_their_own() -> None:
    """By its name it is weight matching with heads told apart so, and no other."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    kinds = frozenset(pair.kinds())
    named, given = aligner("circuits")(pair)(kinds), match_weights(pair, circuits=True)(kinds)
    assert named.objective == given.objective != match_weights(pair)(kinds).objective


@pytest.mark.parametrize(("share", "kept"), [(-1e-7, False), (0.0, False), (1e-7, False), (1e-3, True)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_restart_is_kept_only_if_it_is_better(
    share: float, kept: bool, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By more than rounding, also where every permutation leaves J below zero: there 1.000001 J is less than J."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    b = {n: t.abs() if t.ndim > 1 else t for n, t in pair.b.items()}
    pair = replace(pair, b=b, a={n: sign * t.abs() if t.ndim > 1 else t for n, t in pair.a.items()})
    run, seen = PermutationDescent.run, list[float]()

    def told(self: PermutationDescent, *given: Any, **more: Any) -> Descended:
        found = run(self, *given, **more)
        seen.append(seen[0] + share * abs(seen[0]) if seen else found.history[-1])
        return replace(found, history=(*found.history[:-1], seen[-1]))

    once = match_weights(pair)(frozenset({"ffn"}))
    monkeypatch.setattr(PermutationDescent, "run", told)
    tried = match_weights(asking(pair, restarts=1))(frozenset({"ffn"}))
    assert len(seen) == 2
    assert sign * seen[0] > 0
    reached = (once.objective[0], once.objective[-1] + share * abs(once.objective[-1]))
    assert tried.objective == pytest.approx(reached if kept else once.objective, rel=1e-9)
