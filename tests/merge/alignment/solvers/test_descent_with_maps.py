"""The frame: what J says of two models, which groups act when, and that a step is only taken where it gains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from families import canonical_tensors
from families_more import CASES
from random_transforms import random_transform
from tiny import bert_config, random_tensors

from merge.alignment.choice.auto import folded_pair
from merge.alignment.pair import Pair, Settings
from merge.alignment.solvers.descent_with_maps import MappedDescent, acting_groups, wants_maps
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import identity
from merge.symmetry.transform import Transform, apply_transform, check_transform

ORTHOGONAL = Settings(basis="orthogonal")


def bert_pair(architecture: str = "BertForSequenceClassification", seed: int = 1) -> Pair:
    config = bert_config(architecture, num_hidden_layers=1)
    a, b = (random_tensors(config, k) for k in (0, seed))
    return Pair(spec_for(config), a, b, config, str, settings=ORTHOGONAL)


def test_maps_are_found_where_a_basis_was_asked_for_or_the_norms_are_folded() -> None:
    """The projection of two encoders may be rotated too, but nobody has asked for it then: it is permuted."""
    gpt2, clip = CASES["GPT2LMHeadModel"], CASES["CLIPModel"]
    plain = [Pair(spec_for(c), t, t, c, str) for c in (gpt2, clip) for t in [canonical_tensors(c, 0)]]
    assert [wants_maps(pair) for pair in plain] == [False, False]
    assert wants_maps(folded_pair(plain[0]))
    assert all(wants_maps(replace(pair, settings=ORTHOGONAL)) for pair in plain)
    folded = acting_groups(folded_pair(plain[0]), frozenset(plain[0].kinds()))
    assert folded["residual"] == "orthogonal_one"
    assert set(folded.values()) == {"orthogonal_one", "permutation"}
    clip_groups = acting_groups(replace(plain[1], settings=ORTHOGONAL), frozenset(plain[1].kinds()))
    assert clip_groups["projection"] == "orthogonal"
    assert acting_groups(plain[1], frozenset(plain[1].kinds()))["projection"] == "permutation"


def test_kinds_that_were_not_asked_for_have_no_group() -> None:
    groups = acting_groups(bert_pair(), frozenset({"heads"}))
    assert set(groups) == {"heads0", "qk0", "v0"}
    assert groups["qk0"] == groups["v0"] == "linear"


def test_gains_of_the_other_sign_count_as_far_off() -> None:
    """One against minus one: half way there is nothing left. J by hand, 1 - |2 g|^2 / (|A|^2 + |B|^2)."""
    pair = bert_pair("BertForMaskedLM", seed=0)
    name = "cls.predictions.transform.LayerNorm.weight"
    frame = MappedDescent(replace(pair, b={**pair.b, name: -pair.b[name]}), frozenset(pair.kinds()))
    expected = 1 - 4 * float(pair.a[name].square().sum()) / (2 * frame.square_a)
    assert frame.value == pytest.approx(expected, abs=1e-12)
    assert MappedDescent(pair, frozenset(pair.kinds())).value == pytest.approx(1, abs=1e-12)


def test_a_step_is_taken_only_where_it_gains_and_j_is_that_of_the_moved_model() -> None:
    pair = bert_pair()
    kinds = frozenset(pair.kinds())
    frame, values, taken = MappedDescent(pair, kinds), [], 0
    for _ in range(8):
        for move in frame.coordinates:
            before = frame.value
            taken += (gained := frame.improve(move))
            assert (frame.value > before) is gained
            values.append(frame.value)
    assert taken > 4
    assert not any(frame.improve(move) for move in frame.coordinates)
    check_transform(pair.spec, frame.transform)
    assert MappedDescent(pair, kinds, frame.transform).value == pytest.approx(values[-1], abs=1e-9)
    assert max(values) == values[-1] > values[0]


def test_one_axis_at_its_best_is_found_in_one_step() -> None:
    """Planted inside heads alone, stretched too: the balanced step undoes it, rotations alone would not."""
    pair = bert_pair(seed=0)
    drawn = random_transform(pair.spec, pair.shapes, torch.Generator().manual_seed(1))
    maps = {axis: drawn.maps[axis] for axis in ("qk0", "v0")}
    pair = replace(pair, b=apply_transform(pair.spec, Transform(identity(pair.spec, pair.shapes), maps), pair.b))
    frame = MappedDescent(pair, frozenset({"heads"}))
    assert frame.value < 0.9
    assert frame.improve("heads0")
    assert frame.value == pytest.approx(1, abs=1e-9)
    sizes = torch.linalg.svdvals(frame.transform.maps["qk0"])
    assert float((sizes.amax(-1) / sizes.amin(-1)).max()) > 1.5


def test_a_shuffle_moves_a_third_of_the_busiest_axis() -> None:
    pair = bert_pair()
    frame = MappedDescent(pair, frozenset(pair.kinds()))
    shaken = frame.shuffled(torch.Generator().manual_seed(0)).permutation.moved()
    assert 4 <= shaken["residual"][0] <= 8
    assert not any(moved for axis, (moved, _) in shaken.items() if axis != "residual")
