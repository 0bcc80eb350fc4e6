"""Whether two models come of one start, told by their weights alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from contracts.test_aligners import make_pair

from merge.alignment.choice.common_start import AT_HOME, find_common_start
from merge.alignment.pair import Pair
from merge.symmetry.permutation import apply, random, restrict

CLASSIFIER = "BertForSequenceClassification"


def fine_tunes(noise: float = 0.1) -> Pair:
    """Return a model and itself with some noise on every tensor."""
    return make_pair(CLASSIFIER, planted_seed=None, noise=noise)[0]


def moved(pair: Pair, *axes: str) -> Pair:
    """Return the pair with b's units on these axes in random order."""
    drawn = random(pair.spec, pair.shapes, torch.Generator().manual_seed(1))
    return replace(pair, b=apply(pair.spec, restrict(drawn, axes), pair.b))


def test_fine_tunes_of_one_start_are_told() -> None:
    """Every unit is nearest to itself though every weight has changed; the line that is printed says so in figures."""
    start = find_common_start(fine_tunes())
    assert start.common
    assert start.away == frozenset()
    assert set(start.home) == {"residual", "heads", "ffn", "pooler"}
    assert all(share == 1 for share in start.home.values())
    assert start.cosine == pytest.approx(1 / np.sqrt(1.01), abs=0.002)
    assert str(start).startswith(f"one common start: 100.0% of {start.probed} probed units are nearest to themselves")


def test_a_permuted_copy_of_a_fine_tune_is_no_common_start() -> None:
    """The negative control: the same function, the same weights, in other places."""
    pair = fine_tunes()
    start = find_common_start(moved(pair, *pair.movable))
    assert not start.common
    assert start.away == {"residual", "heads", "ffn", "pooler"}
    assert max(start.home.values()) < 0.3


@pytest.mark.parametrize(("axis", "kind"), [("ffn1", "ffn"), ("heads0", "heads"), ("pooler", "pooler")])
def test_one_axis_of_one_layer_in_another_order_is_seen(axis: str, kind: str) -> None:
    """Every axis is probed, not only some layers: what lies in its own place elsewhere does not hide it."""
    start = find_common_start(moved(fine_tunes(), axis))
    assert not start.common
    assert start.away == {kind}


def test_a_part_of_one_layer_in_another_order_is_seen() -> None:
    """Of one layer 15 % of the units are elsewhere, over both layers 7.5 %: the layer counts, not the mean."""
    pair = fine_tunes()
    order = torch.cat([torch.arange(6).roll(1), torch.arange(6, 40)])
    b, layer = dict(pair.b), "bert.encoder.layer.1"
    for name in ("intermediate.dense.weight", "intermediate.dense.bias"):
        b[f"{layer}.{name}"] = b[f"{layer}.{name}"][order]
    b[f"{layer}.output.dense.weight"] = b[f"{layer}.output.dense.weight"][:, order]
    start = find_common_start(replace(pair, b=b))
    assert start.home["ffn"] == pytest.approx(0.925)
    assert start.away == {"ffn"}


def test_strangers_have_nothing_in_common() -> None:
    """A unit among n others is nearest to the one in its own place once in n times."""
    pair, _ = make_pair(CLASSIFIER, planted_seed=None, other_seed=5)
    start = find_common_start(pair)
    assert start.away == set(pair.kinds())
    assert start.share < 0.15
    assert abs(start.cosine) < 0.1


def test_a_head_made_anew_is_away_and_nothing_else() -> None:
    """Fine-tunes of one encoder whose pooler and classifier were drawn for each."""
    pair = fine_tunes()
    other, _ = make_pair(CLASSIFIER, planted_seed=None, other_seed=5)
    anew = {name: other.b[name] for name in pair.b if name.startswith(("bert.pooler", "classifier"))}
    start = find_common_start(replace(pair, b={**pair.b, **anew}))
    assert start.away == {"pooler"}
    assert start.home["ffn"] == 1


def test_the_share_at_home_is_what_numpy_counts() -> None:
    """Of the feed-forward units of one layer, by the cosine of the rows that write them beside the columns that read them."""
    pair = fine_tunes(noise=2.0)
    sides = []
    for tensors in (pair.a, pair.b):
        into, out = (
            tensors[f"bert.encoder.layer.{layer}.{name}.dense.weight"].double().numpy()
            for layer, name in ((0, "intermediate"), (0, "output"))
        )
        rows = np.concatenate([x / np.sqrt(np.square(x).mean()) for x in (into, out.T)], axis=1)
        sides.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    home = (sides[0] @ sides[1].T).argmax(1) == np.arange(40)
    only = replace(pair, spec=replace(pair.spec, named=frozenset(pair.movable) - {"ffn0"} | {"labels"}))
    start = find_common_start(only)
    assert start.probed == 40
    assert start.home == {"ffn": pytest.approx(home.mean())}
    assert 0 < home.mean() < AT_HOME
    assert not start.common


def test_units_that_were_cut_off_are_not_probed() -> None:
    """A pruned unit is zero in both models and near to nothing: it must not count as one that went elsewhere."""
    pair = fine_tunes()
    cut = {}
    for side in ("a", "b"):
        tensors = dict(getattr(pair, side))
        for name, rows in (("intermediate.dense.weight", 0), ("output.dense.weight", 1)):
            full = f"bert.encoder.layer.0.{name}"
            tensors[full] = tensors[full].clone()
            tensors[full].narrow(rows, 0, 20).zero_()
        cut[side] = tensors
    start = find_common_start(replace(pair, **cut))
    assert start.common
    assert find_common_start(pair).probed - start.probed == 20


def test_nothing_to_probe_is_no_common_start() -> None:
    pair = fine_tunes()
    still = replace(pair, spec=replace(pair.spec, named=frozenset(pair.movable) | {"labels"}))
    assert not find_common_start(still).common


def test_a_reference_of_zeros_has_nothing_in_common() -> None:
    """None of its units is probed, so that nothing says that they are at home; nor if the other is all zero too."""
    pair = fine_tunes()
    nothing = {name: torch.zeros_like(tensor) for name, tensor in pair.a.items()}
    for b in (pair.b, nothing):
        start = find_common_start(replace(pair, a=nothing, b=b))
        assert not start.common
        assert start.probed == 0
    assert find_common_start(pair).probed > 0
