"""Sinkhorn: the operator against scaling by hand, and the descent against planted answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from contracts.test_aligners import make_pair
from likeness import alike
from tiny import bert_config

from merge.alignment.matchers.sinkhorn import descended, distance, match_sinkhorn, sinkhorn
from merge.alignment.matchers.weights import match_weights
from merge.alignment.pair import Pair, Settings
from merge.alignment.solvers.objective import Objective, weights_of
from merge.alignment.solvers.soft import Relaxation
from merge.checkpoints.structure import structure_of
from merge.errors import AlignmentError
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import apply


def relaxation(pair: Pair, *kinds: str) -> Relaxation:
    return Relaxation(Objective(pair, weights_of(pair), pair.axes_of(frozenset(kinds or pair.kinds()))))


def test_the_operator_scales_rows_and_columns_in_turn() -> None:
    """Against plain divisions in numpy; one round is not yet doubly stochastic, many are."""
    scores = np.random.default_rng(0).normal(size=(3, 6, 6)) * 3
    matrix = np.exp(scores)
    for rounds in (1, 200):
        expected = matrix.copy()
        for _ in range(rounds):
            expected /= expected.sum(-1, keepdims=True)
            expected /= expected.sum(-2, keepdims=True)
        found = sinkhorn(torch.from_numpy(scores), rounds)
        assert np.allclose(found.numpy(), expected, atol=1e-12)
        off = float((found.sum(-1) - 1).abs().max())
        assert off > 1e-3 if rounds == 1 else off < 1e-9


def test_large_scores_neither_overflow_nor_vanish() -> None:
    """In logarithms: exp(1000) is no number."""
    scores = 1000 * torch.eye(5, dtype=torch.float64)
    assert torch.allclose(sinkhorn(scores, 5), torch.eye(5, dtype=torch.float64))


def test_the_distance_of_a_permutation_is_that_of_the_moved_weights() -> None:
    """Two minus twice the objective of weight matching, as every tensor has root mean square one."""
    pair, wanted = make_pair("BertForSequenceClassification", planted_seed=3, noise=0.3)
    relaxed = relaxation(pair)
    assert float(distance(relaxed, relaxed.vertex(wanted))) == pytest.approx(2 - 2 * alike([pair], [wanted]), abs=1e-5)
    far = float(distance(relaxed, relaxed.vertex(match_weights(pair)(frozenset({"ffn"})).permutation)))
    assert far > float(distance(relaxed, relaxed.vertex(wanted))) + 0.5


def test_descent_from_nothing_finds_a_planted_order() -> None:
    """Of the feed-forward units, without a lean to what weight matching found; without a step there is nothing."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, noise=0.3)
    mixed_up, wanted = make_pair("BertForSequenceClassification", planted_seed=3, noise=0.3)
    units = {axis: index for axis, index in wanted.indices.items() if axis.startswith("ffn")}
    only = {axis: units.get(axis, torch.arange(i.shape[-1]).expand_as(i)) for axis, i in wanted.indices.items()}
    back = replace(wanted, indices={axis: index.argsort(-1) for axis, index in only.items()})
    pair = replace(pair, b=apply(mixed_up.spec, back, pair.b), settings=Settings(steps=40))
    relaxed = relaxation(pair, "ffn")
    found, value = descended(relaxed, pair, None)
    assert all(torch.equal(found.indices[axis], index) for axis, index in units.items())
    assert value > 0.9
    assert match_sinkhorn(pair)(frozenset({"ffn"})).objective[0] < 0.5


def test_it_is_never_worse_than_weight_matching_and_says_what_it_found() -> None:
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    pair, kinds = replace(pair, settings=Settings(steps=20)), frozenset(pair.kinds())
    found = match_sinkhorn(pair)(kinds)
    assert found.objective[-1] >= match_weights(pair)(kinds).objective[-1]
    assert found.objective[-1] == pytest.approx(alike([pair], [found.permutation]), abs=1e-6)


@pytest.mark.slow
def test_a_large_axis_is_refused_before_anything_is_computed() -> None:
    """The line names the axis, its size and what it would take."""
    config = bert_config("BertForMaskedLM", intermediate_size=1025)
    tensors = {name: torch.zeros(shape) for name, shape in structure_of(config).shapes.items()}
    tensors.pop("cls.predictions.decoder.weight")
    tensors.pop("cls.predictions.decoder.bias")
    pair = Pair(spec_for(config), tensors, tensors, config, str)
    with pytest.raises(AlignmentError, match="up to 1024 units; axis 'ffn0' has 1025.* 0.1 GB .*--align frank-wolfe"):
        match_sinkhorn(pair)(frozenset({"ffn"}))
    assert match_sinkhorn(pair)(frozenset({"heads"})).permutation.is_identity
