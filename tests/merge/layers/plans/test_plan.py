"""A layer plan: what it drops, what it takes from where, and that the model it makes is the one sliced by hand."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import UNLIKE
from layered import (
    FAMILY,
    STACK,
    checkpoint_of,
    difference,
    family_config,
    original_model,
    planned_model,
    sliced_model,
)
from quick import quick_on

from merge.checkpoints.transformers_model import build
from merge.errors import MismatchError, UsageError
from merge.layers.plans.numbers import format_layers, parse_layers
from merge.layers.plans.plan import LayerPlan, planned_config, planned_tensors
from merge.layers.plans.positions import STRATEGIES, dropped_layers
from merge.layers.stacks import layer_of

# ---- what is dropped ----

# Of twelve layers, as the paper lists them (counted from 1).
PAPER = {
    ("top", 4): (9, 10, 11, 12),
    ("top", 6): (7, 8, 9, 10, 11, 12),
    ("bottom", 4): (1, 2, 3, 4),
    ("odd", 4): (5, 7, 9, 11),
    ("even", 4): (6, 8, 10, 12),
    ("odd", 6): (1, 3, 5, 7, 9, 11),
    ("symmetric", 2): (6, 7),
    ("symmetric", 4): (5, 6, 7, 8),
    ("symmetric", 6): (4, 5, 6, 7, 8, 9),
}


@pytest.mark.parametrize(("strategy", "count"), PAPER)
def test_strategies_drop_what_the_paper_drops(strategy: str, count: int) -> None:
    assert tuple(layer + 1 for layer in dropped_layers(strategy, count, 12)) == PAPER[strategy, count]


def test_every_strategy_is_known_and_drops_as_many_as_asked() -> None:
    for total in range(2, 9):
        for strategy in STRATEGIES:
            for count in range(1, total):
                scores = [float((7 * i) % total) for i in range(total)] if strategy == "contribution" else None
                try:
                    dropped = dropped_layers(strategy, count, total, scores)
                except UsageError:
                    assert strategy in ("odd", "even", "symmetric")
                    continue
                assert len(set(dropped)) == count
                assert list(dropped) == sorted(dropped)
                assert set(dropped) <= set(range(total))


def test_contribution_drops_those_that_change_least() -> None:
    """Of equal ones the upper goes: lower layers are the costlier to lose."""
    assert dropped_layers("contribution", 2, 5, [0.5, 0.1, 0.9, 0.05, 0.3]) == (1, 3)
    assert dropped_layers("contribution", 2, 4, [0.2, 0.2, 0.2, 0.9]) == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("topp", 1, 4), "unknown strategy 'topp'. Did you mean 'top'"),
        (("top", 4, 4), "cannot drop 4 of 4 layers: expected 1 to 3"),
        (("top", 0, 4), "cannot drop 0 of 4 layers"),
        (("top", -1, 4), "cannot drop -1 of 4 layers"),
        (("symmetric", 1, 4), "dropping 1 of 4 leaves 3, an odd number"),
        (("odd", 3, 5 - 1), "odd can drop 2 of 4 layers, not 3"),
        (("contribution", 1, 4), "needs a score for each of 4 layers, found 0"),
        (("contribution", 1, 4, [0.1, 0.2]), "each of 4 layers, found 2"),
        (("contribution", 1, 2, [0.1, float("nan")]), "not a number"),
        (("top", 1, 2, [0.1, 0.2]), "top takes no scores"),
    ],
)
def test_a_strategy_that_cannot_be_is_refused(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        dropped_layers(*arguments)


# ---- layers as text ----


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("9-11,3", (9, 10, 11, 3)),
        ("0", (0,)),
        (" 0 - 1 , 4", (0, 1, 4)),
        ("0-3,2-5", (0, 1, 2, 3, 2, 3, 4, 5)),
        ("5-5", (5,)),
    ],
)
def test_ranges_hold_both_their_ends(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text, 12) == layers
    assert parse_layers(text) == layers
    assert parse_layers(format_layers(layers)) == layers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "numbers and ranges separated by commas, such as 9-11,3; found ''"),
        ("1,", "found '1,'"),
        ("a", "found 'a'"),
        ("1:3", "found '1:3'"),
        ("-1", "found '-1'"),
        ("1.5", "found '1.5'"),
        ("²", "found '²'"),
        ("3-1", "range 3-1 is descending"),
        ("9-12", "there is no layer 12; the model has 12, 0 to 11"),
        ("0-99999999", "found '0-99999999'"),
    ],
)
def test_what_is_no_list_of_layers_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        parse_layers(text, 12)


# ---- plans ----


def test_a_plan_is_what_it_was_made_of() -> None:
    assert LayerPlan.keep([0, 2, 2]).layers == (((0, 0),), ((0, 2),), ((0, 2),))
    assert LayerPlan.without([1, 3], 4) == LayerPlan.keep([0, 2])
    assert LayerPlan.drop("top", 1, 3) == LayerPlan.keep([0, 1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        LayerPlan.keep([0]).stack = "text"  # type: ignore[misc]


def test_slices_follow_one_another_and_their_sources_are_merged() -> None:
    plan = LayerPlan.from_slices([[(0, (0, 1))], [(1, (1, 2)), (0, (2, 3))]])
    assert plan.layers == (((0, 0),), ((0, 1),), ((1, 1), (0, 2)), ((1, 2), (0, 3)))
    assert plan.to_json()[2] == {"layer": 2, "from": [{"model": 1, "layer": 1}, {"model": 0, "layer": 2}]}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LayerPlan.keep([]), "needs at least one layer"),
        (lambda: LayerPlan(((),)), "each layer a source"),
        (lambda: LayerPlan.without([1, 1], 4), "layer 1 is listed twice among the layers to drop"),
        (lambda: LayerPlan.without([4], 4), "there is no layer 4; the model has 4, 0 to 3"),
        (lambda: LayerPlan.without([0, 1], 2), "all 2 layers would be dropped"),
        (lambda: LayerPlan.from_slices([[]]), "slice 0 has no layers"),
        (lambda: LayerPlan.from_slices([[(0, (0,))], [(0, ())]]), "slice 1 has no layers"),
        (lambda: LayerPlan.from_slices([[(0, (0, 1)), (1, (0,))]]), "slice 0 takes 2 of model 0, 1 of model 1 layers"),
    ],
)
def test_a_plan_that_is_none_is_refused(make: Callable[[], LayerPlan], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


# ---- the model that a plan makes ----


@pytest.mark.parametrize("strategy", [*STRATEGIES, None])
def test_dropping_equals_slicing_the_modules(strategy: str | None) -> None:
    """For every strategy, with the kept layers of six written out by hand."""
    kept = {
        "top": [0, 1, 2, 3],
        "bottom": [2, 3, 4, 5],
        "odd": [0, 1, 3, 5],
        "even": [0, 1, 2, 4],
        "symmetric": [0, 1, 4, 5],
        "contribution": [1, 2, 4, 5],
        None: [0, 1, 2, 3, 4, 5],
    }[strategy]
    checkpoint = checkpoint_of("bert", num_hidden_layers=6)
    scores = [0.1, 0.5, 0.6, 0.2, 0.9, 0.7] if strategy == "contribution" else None
    plan = LayerPlan.drop(strategy, 2, 6, scores) if strategy else LayerPlan.keep(range(6))
    made = planned_model(checkpoint, plan)
    assert difference(made, sliced_model(checkpoint, kept)) < 1e-10
    assert (difference(made, original_model(checkpoint)) > 1e-3) == (strategy is not None)


# A middle layer dropped and the others reordered; one repeated. ModernBERT's first layer has to stay first.
ORDERS = ([2, 0, 3], [0, 3, 1, 2, 2])


@pytest.mark.parametrize("order", quick_on(ORDERS[1:], ORDERS), ids=str)
@pytest.mark.parametrize("kind", quick_on({*UNLIKE, "t5", "qwen2"} - {"mpnet", "xlm-roberta-xl"}, FAMILY))
def test_every_family_computes_what_its_layers_computed(kind: str, order: list[int]) -> None:
    """Tensors renamed and config rewritten, against the original model's list of modules replaced in memory."""
    if kind == "modernbert":
        order = [0, *(layer for layer in order if layer != 0)]
    checkpoint, plan = checkpoint_of(kind), LayerPlan.keep(order, STACK.get(kind, ""))
    by_hand = sliced_model(checkpoint, order)
    assert difference(planned_model(checkpoint, plan), by_hand) < 1e-10
    assert difference(original_model(checkpoint), by_hand) > 1e-3
    planned = planned_tensors(checkpoint.config, checkpoint.shapes, plan)
    used = {name for made_of in planned.sources.values() for _, name in made_of}
    assert used | {name for _, name in planned.left_out} == set(checkpoint.tensors)
    assert used.isdisjoint({name for _, name in planned.left_out})


def test_all_layers_in_order_are_the_model_itself() -> None:
    for kind in FAMILY:
        checkpoint = checkpoint_of(kind)
        plan = LayerPlan.keep(range(4), STACK.get(kind, ""))
        planned = planned_tensors(checkpoint.config, checkpoint.shapes, plan)
        assert planned.sources == {name: ((0, name),) for name in checkpoint.tensors}
        assert planned.left_out == ()
        assert planned_config(checkpoint.config, plan) == checkpoint.config


def test_a_permutation_and_its_inverse_give_the_names_back() -> None:
    checkpoint, order = checkpoint_of("gpt2"), [2, 0, 3, 1]
    there = planned_tensors(checkpoint.config, checkpoint.shapes, LayerPlan.keep(order)).sources
    back = planned_tensors(checkpoint.config, checkpoint.shapes, LayerPlan.keep([1, 3, 0, 2])).sources
    assert all(there[back[name][0][1]] == ((0, name),) for name in checkpoint.tensors)
    assert any(there[name] != ((0, name),) for name in checkpoint.tensors)


def test_inputs_are_not_written_to() -> None:
    for kind in ("bert", "clip", "qwen2"):
        config = family_config(kind)
        before = family_config(kind)
        planned_config(config, LayerPlan.keep([0, 2], STACK.get(kind, "")))
        assert config == before


# ---- several models ----


def test_slices_of_two_models_run_one_after_the_other() -> None:
    """The lower half of one and the upper half of another: embeddings of the first, head of the last."""
    a, b = checkpoint_of("bert", 0), checkpoint_of("bert", 1, num_hidden_layers=6)
    plan = LayerPlan.from_slices([[(0, (0, 1))], [(1, (3, 4, 5))]])
    planned = planned_tensors([a.config, b.config], [a.shapes, b.shapes], plan)
    config = planned_config([a.config, b.config], plan)
    tensors = {a.written_name(name): (a, b)[m].tensor(one) for name, ((m, one),) in planned.sources.items()}
    made = build(config, tensors, torch.float64)
    by_hand, upper = original_model(b), original_model(a)
    by_hand.bert.embeddings = upper.bert.embeddings
    by_hand.cls.predictions.decoder.weight = upper.bert.embeddings.word_embeddings.weight  # tied
    layers = [*upper.bert.encoder.layer[:2], *by_hand.bert.encoder.layer[3:]]
    by_hand.bert.encoder.layer = torch.nn.ModuleList(layers)
    assert config["num_hidden_layers"] == 5
    assert difference(made, by_hand) < 1e-10
    assert difference(made, upper) > 1e-3
    left = {(m, layer_of(name, "bert")) for m, name in planned.left_out}
    assert {(m, part[1]) for m, part in left if part} == {(0, 2), (0, 3), (1, 0), (1, 1), (1, 2)}
    assert {(m, name.split(".")[0]) for m, name in planned.left_out if layer_of(name, "bert") is None} == {
        (0, "cls"),
        (1, "bert"),
    }


def test_merged_layers_name_all_their_sources() -> None:
    """Merged at the first layer, so embeddings are merged; copied at the last, so the head is that model's."""
    a, b = checkpoint_of("bert", 0), checkpoint_of("bert", 1)
    plan = LayerPlan.from_slices([[(0, (0, 1)), (1, (0, 1))], [(1, (3,))]])
    sources = planned_tensors([a.config, b.config], [a.shapes, b.shapes], plan).sources
    word = "bert.embeddings.word_embeddings.weight"
    assert sources[word] == ((0, word), (1, word))
    name = "bert.encoder.layer.{}.output.dense.weight"
    assert sources[name.format(1)] == ((0, name.format(1)), (1, name.format(1)))
    assert sources[name.format(2)] == ((1, name.format(3)),)
    assert sources["cls.predictions.bias"] == ((1, "cls.predictions.bias"),)
    assert len(sources) == len(a.tensors) - sum("layer.3." in n for n in a.tensors)


def test_layers_of_one_model_can_be_merged_with_each_other() -> None:
    """What is no layer's then comes from that model once, not twice."""
    a = checkpoint_of("bert", 0)
    plan = LayerPlan((((0, 0),), ((0, 1), (0, 2)), ((0, 3),)))
    sources = planned_tensors(a.config, a.shapes, plan).sources
    name = "bert.encoder.layer.{}.output.dense.weight"
    assert sources[name.format(1)] == ((0, name.format(1)), (0, name.format(2)))
    assert all(len(sources[n]) == 1 for n in sources if "layer.1." not in n)


TWO = LayerPlan.from_slices([[(0, (0, 1))], [(1, (2, 3))]])


@pytest.mark.parametrize(
    ("kinds", "changes", "plan", "error", "said"),
    [
        (("bert", "electra"), {}, TWO, MismatchError, "different architectures cannot be combined: bert, electra"),
        (("bert", "bert"), {"num_hidden_layers": 3}, TWO, UsageError, "is layer 3 of model 1, which has layers 0 to 2"),
        (("bert",), {}, TWO, UsageError, "layer 2 of the plan is from model 1, but the models are 0 to 0"),
        (
            ("qwen2", "qwen2"),
            {"max_window_layers": 3},
            LayerPlan.from_slices([[(0, (0, 2)), (1, (0, 2))]]),
            MismatchError,
            "layer 1 of the plan would merge layers of different types: layer_types is sliding_attention, full_attention",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(
    kinds: tuple[str, ...], changes: dict[str, Any], plan: LayerPlan, error: type[Exception], said: str
) -> None:
    configs = [family_config(kind, **(changes if i else {})) for i, kind in enumerate(kinds)]
    with pytest.raises(error, match=re.escape(said)):
        planned_config(configs, plan)


def test_a_tensor_that_one_model_lacks_is_named() -> None:
    a = checkpoint_of("bert")
    bare = {name: shape for name, shape in a.shapes.items() if name != "cls.predictions.bias"}
    layerless = {name: shape for name, shape in a.shapes.items() if "layer.2.output" not in name}
    wide = checkpoint_of("bert", hidden_size=32)
    odd = a.shapes | {"bert.encoder.layer.2.output.dense.weight": (24, 41)}
    both = LayerPlan.from_slices([[(0, (0, 2)), (1, (0, 2))]])
    configs = [a.config, a.config]
    assert planned_tensors(configs, [a.shapes, a.shapes], both).sources
    with pytest.raises(MismatchError, match="model 1 lacks cls.predictions.bias"):
        planned_tensors(configs, [a.shapes, bare], both)
    with pytest.raises(MismatchError, match="layer 2 of model 1 has other tensors .*output"):
        planned_tensors(configs, [a.shapes, layerless], both)
    with pytest.raises(MismatchError, match=re.escape("(24, 41), but bert.encoder.layer.0.output.dense.weight")):
        planned_tensors(configs, [a.shapes, odd], both)
    with pytest.raises(
        MismatchError, match=re.escape("of model 1 has shape (32,), but bert.encoder.layer.0.attention.output")
    ):
        planned_tensors([a.config, wide.config], [a.shapes, wide.shapes], TWO)  # one after the other
    with pytest.raises(MismatchError, match="layer 3 of model 0 has no tensors"):
        planned_tensors(a.config, {n: s for n, s in a.shapes.items() if ".layer.3." not in n}, LayerPlan.keep([3]))


def test_slices_of_different_models_need_one_list_of_layers() -> None:
    """Whose decoder would a stitched encoder have?"""
    a = checkpoint_of("bart")
    plan = LayerPlan.from_slices([[(0, (0, 1))], [(1, (2, 3))]], "encoder")
    with pytest.raises(MismatchError, match="need an architecture with one list of layers, which bart is not"):
        planned_tensors([a.config, a.config], [a.shapes, a.shapes], plan)
