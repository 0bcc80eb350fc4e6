"""Models run by plans: identity, cached prefixes, dropped, reordered and edited layers, each against another derivation."""

from __future__ import annotations

import layered
import pytest
import torch
from quick import quick_on
from slotted_models import batch_of, model_of

from evals.surgery.measure import plan_cost
from evals.surgery.slots import Step, first_change, order_plan, slotted
from evals.surgery.sublayers import Edit, nothing
from evals.surgery.variants import (
    duplicates,
    no_layers,
    random_orders,
    single_layers,
    sublayers,
    swaps,
    without,
)

# Norms after and before, shared layers, a convolution, parallel sublayers, a bare parameter, norms of writes, kinds of attention.
UNLIKE = ("bert", "albert", "deberta-v2", "mpnet", "modernbert", "xlnet", "gpt_neox", "gemma2", "t5", "opt")
# Whose layers know their place, or share something outside them.
PLACED = ("bert", "albert", "modernbert", "xlnet", "gemma2", "t5")


@pytest.mark.parametrize("family", quick_on(("bert",), UNLIKE))
@torch.inference_mode()
def test_cached_prefixes_give_the_bits_of_full_runs(family: str) -> None:
    """In every family, for lesions of each kind; the identity order gives the bits of the model itself."""
    model = model_of(family)
    batch = batch_of(model)
    whole = model.whole(batch)
    assert torch.equal(model.model(**batch)[0], whole.result[0])
    identity = model.follow(batch, order_plan(range(4)), whole.calls, cached=False)
    assert torch.equal(identity.result[0], whole.result[0])
    cases = [*single_layers(4), *sublayers(model), *list(duplicates(4))[2:], *list(swaps(4))[4:], no_layers(4)]
    assert len(cases) >= 17
    changed = 0
    for variant in cases:
        cached, full = (model.follow(batch, variant.plan, whole.calls, flag) for flag in (True, False))
        assert torch.equal(cached.result[0], full.result[0]), variant.name
        assert torch.equal(cached.states, full.states), variant.name
        changed += not torch.equal(full.result[0], whole.result[0])
    assert changed == len(cases) - (family == "albert")  # whose last two layers are one module


@torch.inference_mode()
def test_a_prefix_of_another_batch_is_no_prefix() -> None:
    """The negative control: with what another batch left in the cache, outputs differ."""
    model = model_of("bert")
    batch = batch_of(model)
    plan = without([3], 4)
    right, wrong = (model.whole(batch_of(model, seed)).calls for seed in (0, 1))
    assert torch.equal(model.follow(batch, plan, right).states, model.follow(batch, plan, right, False).states)
    assert not torch.equal(model.follow(batch, plan, wrong).states, model.follow(batch, plan, right, False).states)


@pytest.mark.parametrize("family", quick_on(("bert",), PLACED))
@torch.inference_mode()
def test_layers_dropped_and_reordered_are_those_of_a_model_cut_by_hand(family: str) -> None:
    """By slicing the list of modules; the control is another order."""
    checkpoint = layered.checkpoint_of(family)
    model = slotted(layered.original_model(checkpoint), layered.STACK.get(family, ""))
    batch = batch_of(model)
    calls = model.whole(batch).calls
    for plan, order in (
        (without([1], 4), (0, 2, 3)),
        (order_plan((0, 2, 1, 3)), (0, 2, 1, 3)),
        (((Step(0),), (Step(1), Step(1)), (Step(2),), (Step(3),)), (0, 1, 1, 2, 3)),
    ):
        cut = layered.sliced_model(checkpoint, order)
        cut.config.use_cache = False
        expected = cut(**batch)[0]
        torch.testing.assert_close(model.follow(batch, plan, calls).result[0], expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(model.follow(batch, order_plan((3, 1, 2, 0)), calls).result[0], expected, atol=1e-3)


@torch.inference_mode()
def test_a_silent_sublayer_is_one_whose_projection_is_zero() -> None:
    """BERT by zeroed weights; XLNet, whose attention ends in a bare parameter, too."""
    for family, names in (
        ("bert", ("encoder.layer.1.attention.output.dense.weight", "encoder.layer.1.attention.output.dense.bias")),
        ("xlnet", ("layer.1.rel_attn.o",)),
    ):
        model = model_of(family)
        batch = batch_of(model)
        calls = model.whole(batch).calls
        plan = tuple((Step(k, Edit(attention=nothing) if k == 1 else None),) for k in range(4))
        silent = model.follow(batch, plan, calls).states
        for name in names:
            model.model.base_model.get_parameter(name).zero_()
        torch.testing.assert_close(silent, model.whole(batch).states, rtol=0, atol=1e-6)
        assert not torch.allclose(silent, calls[-1].states(), atol=1e-3)


@torch.inference_mode()
def test_a_bypassed_norm_leaves_the_stream_as_it_is() -> None:
    """BERT's layer without attention and its norm is its feed-forward part alone, called by hand; with the norm it is not."""
    model = model_of("bert")
    batch = batch_of(model)
    calls = model.whole(batch).calls
    layer, before = model.module(3), calls[2].states()
    alone = layer.output(layer.intermediate(before), before)
    bypassed, kept = (
        model.follow(batch, (*order_plan(range(3)), (Step(3, Edit(attention=nothing, bypassed=past)),)), calls).states
        for past in (("attention",), ())
    )
    assert torch.equal(bypassed, alone)
    assert not torch.allclose(kept, alone, atol=1e-3)


@torch.inference_mode()
def test_a_planted_dead_layer_changes_nothing_and_a_living_one_does() -> None:
    """Where norms come first, a layer whose projections are zero is the identity; where they come last it is not."""
    for family, dead in (("gpt2", True), ("bert", False)):
        model = model_of(family)
        for name, parameter in model.module(1).named_parameters():
            if name.startswith(("attn.c_proj", "mlp.c_proj", "attention.output.dense", "output.dense")):
                parameter.zero_()
        batch = batch_of(model)
        whole = model.whole(batch)
        same = [torch.equal(model.follow(batch, without([k], 4), whole.calls).states, whole.states) for k in range(4)]
        assert same == [False, dead, False, False]


@torch.inference_mode()
def test_cached_prefixes_run_half_the_layers_of_single_lesions() -> None:
    """L lesions of L layers run L (L - 1) / 2 layers, of L (L - 1) in full: counted while they run."""
    model = model_of("bert")
    batch = batch_of(model)
    calls = model.whole(batch).calls
    for cached, due in ((True, 6), (False, 12)):
        before = model.passes
        for variant in single_layers(4):
            model.follow(batch, variant.plan, calls, cached)
        assert model.passes - before == due == sum(plan_cost(v.plan, cached) for v in single_layers(4))


def test_plans_say_where_they_change_first() -> None:
    assert first_change(order_plan(range(4))) == 4
    assert first_change(order_plan((0, 1, 3, 2))) == 2
    assert first_change(without([0], 4)) == 0
    assert [v.plan for v in random_orders(4, 2, 0)][:1] == [order_plan(range(4))]
