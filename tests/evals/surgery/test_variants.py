"""The edited models of a study: which, how many, what stays in place."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean

import layered
import pytest
from slotted_models import model_of

from evals.run.inside.linearity import check_sublayers
from evals.surgery.lesion import LesionSettings, check_parts, lesion_variants
from evals.surgery.linearity import LinearitySettings, order_variants
from evals.surgery.slots import Plan
from evals.surgery.sublayers import layer_kind
from evals.surgery.variants import given_orders, random_layers, random_orders, reversals, shuffles, swaps
from merge.errors import UsageError


def order_of(plan: Plan) -> list[int]:
    return [step.layer for steps in plan for step in steps]


def test_every_pair_is_swapped_once_and_every_range_reversed_once() -> None:
    pairs = {v.layers: order_of(v.plan) for v in swaps(4)}
    assert len(pairs) == 6
    assert pairs[0, 3] == [3, 1, 2, 0]
    ranges = {v.layers: order_of(v.plan) for v in reversals(5)}
    assert len(ranges) == 6
    assert ranges[1, 2, 3] == [0, 3, 2, 1, 4]


def test_shuffles_keep_as_many_layers_as_they_say() -> None:
    """At most k layers move, the thirds keep to themselves, and no shuffle is the order itself."""
    listed = list(shuffles(6, 3, 0))
    assert [v for v in listed if order_of(v.plan) == list(range(6))] == []
    fixed = [v for v in listed if v.kind == "k layers fixed"]
    assert 5 * 2 <= len(fixed) <= 5 * 3
    assert len({(v.kind, v.at, v.plan) for v in listed}) == len(listed)
    assert all(len(v.layers) <= v.at for v in fixed)
    assert {v.at for v in fixed} == {2, 3, 4, 5, 6}
    thirds = [v for v in listed if v.kind == "each third by itself"]
    assert thirds
    assert all({*order_of(v.plan)[:2]} == {0, 1} and {*order_of(v.plan)[4:]} == {4, 5} for v in thirds)
    assert all(set(v.layers) <= {2, 3} for v in listed if v.kind == "layers 2 to 3 alone")
    assert [v.plan for v in shuffles(6, 3, 0)] == [v.plan for v in listed]
    assert [v.plan for v in shuffles(6, 3, 1)] != [v.plan for v in listed]


def test_random_sets_are_different_and_all_are_taken_where_there_are_few() -> None:
    sets = [v.layers for v in random_layers(5, 6, 0)]
    assert len(set(sets)) == len(sets) == 6 + 6 + 5
    assert {len(layers) for layers in sets} == {2, 3, 4}


def test_more_swaps_bring_tau_down() -> None:
    taus = [v.at for v in random_orders(12, 24, 0)]
    assert taus[0] == 1.0
    assert sum(taus[1:7]) / 6 > sum(taus[-6:]) / 6 + 0.3
    assert [v.at for v in given_orders([(0, 1, 2), (2, 1, 0)])] == [1.0, -1.0]
    assert all(a != b for a, b in pairwise(order_of(v.plan) for v in list(random_orders(12, 24, 0))[:2]))


def test_a_study_has_the_parts_that_were_asked_for() -> None:
    model = model_of("bert")
    variants, notes = lesion_variants(model, LesionSettings(parts=("layers", "sublayers"), layers="1-2"))
    assert notes == []
    assert [v.name for v in variants][:3] == ["no layers", "without layer 1", "without layer 2"]
    assert len(variants) == 1 + 2 + 2 * 4
    norms_first, _ = lesion_variants(model_of("gpt2"), LesionSettings(parts=("sublayers",)))
    assert len(norms_first) == 1 + 4 * 2  # where norms come first both meanings are one


def test_orders_of_shared_layers_are_left_out_and_that_is_said() -> None:
    """ALBERT: where all layers are one module any order is the same model; with two modules it is not (the control)."""
    for groups, left_out in ((1, True), (2, False)):
        model = model_of("albert", 4, num_hidden_groups=groups)
        variants, notes = lesion_variants(model, LesionSettings(parts=("orders", "layers"), reorders=3))
        assert any(v.part == "orders" for v in variants) is not left_out
        assert any("share their weights" in note for note in notes) is left_out
        swapped, notes = order_variants(model, LinearitySettings())
        assert bool(swapped) is not left_out
        assert any("swaps, reversals, shuffles are left out" in note for note in notes) is left_out


def test_what_has_no_sublayers_in_the_table_is_lesioned_by_layers_and_that_is_said() -> None:
    model = model_of("albert", 2, num_hidden_groups=1, inner_group_num=2)
    variants, notes = lesion_variants(model, LesionSettings(parts=("layers", "sublayers", "paths")))
    assert {v.part for v in variants} == {"floor", "layers"}
    assert "sublayers and paths are left out" in notes[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (LesionSettings(layers="0-4"), "there is no layer 4; the model has 4, 0 to 3"),
        (LesionSettings(layers="x"), "numbers and ranges"),
        (LesionSettings(orders=((0, 1, 2),)), "layer 3 is missing; an order has each of the 4 layers once"),
        (LesionSettings(orders=((0, 1, 2, 3, 3),)), "a layer is there twice"),
        (LesionSettings(orders=((0, 1, 2, 7),)), "there is no layer 7"),
        (LesionSettings(parts=("layer",)), "unknown part 'layer'.*layers"),
        (LesionSettings(parts=()), "no part was asked for"),
    ],
)
def test_bad_settings_are_one_line(settings: LesionSettings, message: str) -> None:
    with pytest.raises(UsageError, match=message) as stop:
        lesion_variants(model_of("bert"), settings)
    assert "\n" not in str(stop.value)


def test_a_decoder_that_reads_an_encoder_is_lesioned_by_layers_alone() -> None:
    """Three sublayers add to its stream, and not two; the encoder beside it has two (the control)."""
    config = layered.family_config("bart")
    assert layer_kind(config, "decoder") is None
    assert layer_kind(config, "encoder") is not None
    with pytest.raises(UsageError, match="read an encoder between its two sublayers"):
        check_sublayers(layered.checkpoint_of("bart"), "decoder")


def test_parts_are_run_in_their_order() -> None:
    assert check_parts(("b", "a"), ("a", "b", "c")) == ("a", "b")


def test_random_orders_begin_with_one_swap_and_end_with_as_many_as_layers() -> None:
    """24 draws of 6 layers: four draws for each number of swaps, so that the first four move two layers each."""
    identity, *orders = random_orders(6, 24, seed=0)
    assert (identity.layers, identity.at) == ((), 1.0)
    assert [len(order.layers) for order in orders[:4]] == [2] * 4
    assert max(len(order.layers) for order in orders[4:8]) > 2
    assert fmean([order.at for order in orders[:4]]) > fmean([order.at for order in orders[-8:]])
