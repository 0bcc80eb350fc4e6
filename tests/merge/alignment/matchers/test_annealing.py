"""Annealing: swaps against all orders there are, and what it may not do."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, permutations

import pytest
import torch
from contracts.test_aligners import make_pair
from tiny import bert_config, random_tensors

from merge.alignment.matchers.annealing import annealed, match_annealing, swapped
from merge.alignment.midpoint import score
from merge.alignment.pair import Pair, Settings
from merge.checkpoints.inputs import random_inputs
from merge.errors import AlignmentError
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import Permutation, identity


def few_units(steps: int, seed: int = 0) -> Pair:
    """Two unrelated models with five feed-forward units: 120 orders."""
    config = bert_config(num_hidden_layers=1, intermediate_size=5)
    a, b = (random_tensors(config, seed, torch.float32) for seed in (0, 1))
    louder = {"bert.encoder.layer.0.output.dense.weight": 8.0}
    a, b = ({name: tensor * louder.get(name, 1) for name, tensor in side.items()} for side in (a, b))
    return Pair(
        spec_for(config), a, b, config, str, random_inputs(config, 0), settings=Settings(steps=steps, seed=seed)
    )


@pytest.mark.slow
def test_among_few_units_it_finds_the_best_order_of_all() -> None:
    """All 120 are scored; a handful of swaps does not get there, a few hundred do."""
    pair = few_units(200)
    still = identity(pair.spec, pair.shapes)
    orders = [Permutation({**still.indices, "ffn0": torch.tensor(o)}, still.outer) for o in permutations(range(5))]
    values, _ = score(orders, pair)
    found = annealed(pair, frozenset({"ffn"}), still)
    assert score([found], pair)[0][0] == pytest.approx(min(values), rel=1e-5)
    assert min(values) < 0.99 * values[0]
    early = annealed(few_units(1), frozenset({"ffn"}), still)
    assert score([early], pair)[0][0] > 1.001 * min(values)


@pytest.mark.slow
def test_the_best_ever_seen_is_kept() -> None:
    """It never ends above its start, whatever the seed, though swaps that raise the divergence are accepted."""
    still = identity(few_units(1).spec, few_units(1).shapes)
    for seed in range(5):
        pair = few_units(15, seed)
        nothing, found = score([still, annealed(pair, frozenset({"ffn"}), still)], pair)[0]
        assert found <= nothing


def test_a_swap_exchanges_two_places() -> None:
    """Whole heads take their orders along; inside heads both places lie in one block."""
    _, wanted = make_pair("BertForSequenceClassification", planted_seed=3)
    generator = torch.Generator().manual_seed(0)
    for axis in ("residual", "heads0", "v0"):
        found = swapped(wanted, axis, generator)
        changed = (found.indices[axis] != wanted.indices[axis]).nonzero()
        assert len(changed) == 2
        if axis == "v0":
            assert changed[0, 0] == changed[1, 0]
        if axis == "heads0":
            one, other = changed[:, 0].tolist()
            for inside in ("qk0", "v0"):
                assert torch.equal(found.indices[inside][one], wanted.indices[inside][other])
        others = {"heads0": {"qk0", "v0"}}.get(axis, set()) | {axis}
        assert all(torch.equal(found.indices[x], i) for x, i in wanted.indices.items() if x not in others)


@pytest.mark.slow
def test_its_objective_is_the_share_of_the_divergence_that_is_gone() -> None:
    """Recomputed by the function that chooses between alignments; more steps gain more."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    pair = replace(pair, batches=pair.batches[:4], settings=Settings(steps=40))
    found = match_annealing(pair)(frozenset({"ffn", "pooler"}))
    nothing, reached = score([identity(pair.spec, pair.shapes), found.permutation], pair)[0]
    assert found.objective[0] == 0
    assert found.objective[-1] == pytest.approx(1 - reached / nothing, abs=1e-5)
    assert all(later > earlier for earlier, later in pairwise(found.objective))
    assert found.objective[-1] > 0.02


def test_without_text_it_says_what_else_there_is() -> None:
    with pytest.raises(AlignmentError, match="annealing needs calibration text .*--align weights"):
        match_annealing(replace(few_units(1), batches=()))
