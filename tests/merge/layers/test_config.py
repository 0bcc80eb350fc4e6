"""The traps: what each family's config says by the place of a layer, and that leaving it alone gives another model."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from layered import STACK, checkpoint_of, difference, family_config, original_model, planned_model, sliced_model
from quick import quick_on

from merge.checkpoints.transformers_model import build
from merge.errors import CheckpointError, UsageError
from merge.layers.config import group_of, stored_layers
from merge.layers.plans.plan import LayerPlan, plan_notes, planned_config, planned_tensors

KEEP = LayerPlan.keep

# Families whose layers differ by place: an order, and the config as one would write it that changes only the count.
BY_PLACE = {
    "modernbert": ([0, 2, 3, 1], "layer_types"),
    "qwen2": ([0, 2, 1], "layer_types"),
    "qwen3": ([2, 3, 0], "layer_types"),
    "gemma2": ([1, 2, 0], "layer_types"),
    "gemma3_text": ([1, 0, 3], "layer_types"),
    "smollm3": ([1, 0, 3], "no_rope_layers"),
}


@pytest.mark.parametrize("kind", quick_on(("modernbert", "qwen2", "smollm3"), BY_PLACE))
def test_a_list_by_place_left_alone_gives_another_model(kind: str) -> None:
    """The negative control of every rewritten list: cut to length instead, it gives layers another's attention."""
    order, key = BY_PLACE[kind]
    checkpoint, plan = checkpoint_of(kind), KEEP(order)
    config, by_hand = planned_config(checkpoint.config, plan), sliced_model(checkpoint, order)
    assert difference(planned_model(checkpoint, plan, config), by_hand) < 1e-10
    naive = config | {key: checkpoint.config[key][: len(order)]}
    assert naive[key] != config[key]
    assert difference(planned_model(checkpoint, plan, naive), by_hand) > 1e-3


@pytest.mark.parametrize("kind", BY_PLACE)
def test_a_list_not_cut_is_not_a_config(kind: str) -> None:
    """Why the count alone will not do: transformers refuses the pair, when the model is long written."""
    config = checkpoint_of(kind).config
    with pytest.raises(CheckpointError, match="must be equal to the number of `layer_types`"):
        build(config | {"num_hidden_layers": 3}, {"x": torch.zeros(1)})


def test_an_old_modernbert_config_becomes_one_with_a_list() -> None:
    """A period cannot say what is left of full, local, local, full without its second layer; a list can."""
    config = family_config("modernbert")
    assert "layer_types" not in config
    dropped = planned_config(config, KEEP([0, 2, 3]))
    assert dropped["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]
    assert "global_attn_every_n_layers" not in dropped
    assert "config.json, as the layers no longer match: global_attn_every_n_layers" in plan_notes(
        config, KEEP([0, 2, 3])
    )[0].replace("left out of ", "")
    kept = planned_config(config, KEEP([0, 1, 2]))
    assert kept["global_attn_every_n_layers"] == 3
    assert plan_notes(config, KEEP([0, 1, 2])) == ()


@pytest.mark.parametrize("order", [[1, 2, 3], [1, 0, 2, 3], [0, 1, 0, 2], [3, 0]], ids=str)
def test_the_first_layer_of_modernbert_stays_first(order: list[int]) -> None:
    """It alone has no attn_norm: elsewhere the norm would be missing, and another layer put first would lose its own."""
    checkpoint = checkpoint_of("modernbert")
    with pytest.raises(UsageError, match="modernbert: only the first layer has no attn_norm"):
        planned_config(checkpoint.config, KEEP(order))
    with pytest.raises(UsageError, match="attn_norm"):
        planned_tensors(checkpoint.config, checkpoint.shapes, KEEP(order))


def test_what_is_refused_of_modernbert_would_indeed_be_another_model() -> None:
    """The control: without the refused layer's attn_norm, which has no place, outputs differ from the sliced model's."""
    checkpoint = checkpoint_of("modernbert")
    moved = {
        re.sub(r"layers\.(\d)", lambda m: f"layers.{int(m[1]) - 1}", name): tensor
        for name, tensor in checkpoint.state_dict().items()
        if ".layers.0." not in name
    }
    lost = [name for name in moved if "layers.0.attn_norm" in name]
    kinds = checkpoint.config["layer_types"][1:]
    config = {**checkpoint.config, "num_hidden_layers": 3, "layer_types": kinds}
    model = build(config, {name: tensor for name, tensor in moved.items() if name not in lost}, torch.float64)
    assert len(lost) == 1
    assert difference(model, sliced_model(checkpoint, [1, 2, 3])) > 1e-3


def test_an_old_sliding_window_pattern_follows_its_layers() -> None:
    """Gemma 3 states a period that its layers follow only if every one stands where it stood."""
    config = family_config("gemma3_text")
    assert planned_config(config, KEEP([0, 1]))["sliding_window_pattern"] == 2
    swapped = planned_config(config, KEEP([1, 0, 2]))
    assert swapped["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention"]
    assert not {"sliding_window_pattern", "_sliding_window_pattern"} & swapped.keys()


@pytest.mark.parametrize(("order", "window"), [([0, 1, 2], 2), ([0, 3], 1), ([2, 3], 0), ([0, 2, 1], None)])
def test_the_window_of_qwen_begins_where_its_layers_do(order: list[int], window: int | None) -> None:
    """Two full layers, then two with a window; where they alternate no beginning can say it, and the list does alone."""
    config = family_config("qwen2")
    planned = planned_config(config, KEEP(order))
    assert planned.get("max_window_layers") == window
    assert planned["layer_types"] == [["full_attention", "sliding_attention"][layer >= 2] for layer in order]


def test_positions_of_smollm_follow_their_layers() -> None:
    config = family_config("smollm3")
    planned = planned_config(config, KEEP([1, 0, 3]))
    assert planned["no_rope_layers"] == [0, 1, 0]
    assert "no_rope_layer_interval" not in planned


# ---- ALBERT ----


def albert(groups: int) -> Any:
    return checkpoint_of("albert", num_hidden_groups=groups)


def test_albert_with_one_group_drops_no_tensor() -> None:
    """Layers are the same weights applied again: dropping one changes an integer, reordering nothing."""
    checkpoint = albert(1)
    planned = planned_tensors(checkpoint.config, checkpoint.shapes, KEEP([0, 3]))
    assert planned.left_out == ()
    assert planned_config(checkpoint.config, KEEP([0, 3])) == checkpoint.config | {"num_hidden_layers": 2}
    assert planned_config(checkpoint.config, KEEP([3, 2, 1, 0])) == checkpoint.config


@pytest.mark.parametrize(
    ("order", "groups"),
    [
        ([0, 1, 2, 3], 2),
        ([2, 3, 0, 1], 2),  # the groups change places
        ([0, 3], 2),
        ([0, 1], 1),  # all of one group: the other is left out
        ([0, 2, 3], 3),  # one of the first, two of the second: two groups share layers evenly, so untied
        ([0, 2, 1, 3], 4),
        ([0, 0, 0, 1, 2, 3, 3, 2], 2),
    ],
)
def test_albert_keeps_the_fewest_groups_that_say_the_order(order: list[int], groups: int) -> None:
    checkpoint, plan = albert(2), KEEP(order)
    config = planned_config(checkpoint.config, plan)
    assert config["num_hidden_groups"] == groups
    # By hand: layers 0 and 1 are of group 0, 2 and 3 of group 1; layer i of n is of group i G // n.
    stored = [group for ((_, group),) in stored_layers([checkpoint.config], plan.layers)]
    assert [stored[i * groups // len(order)] for i in range(len(order))] == [layer // 2 for layer in order]
    assert difference(planned_model(checkpoint, plan), sliced_model(checkpoint, order)) < 1e-10


def test_the_group_of_a_layer_is_the_one_transformers_uses() -> None:
    config = family_config("albert", num_hidden_layers=12, num_hidden_groups=5)
    assert [group_of(layer, config) for layer in range(12)] == [int(layer / (12 / 5)) for layer in range(12)]


def test_untying_albert_is_said_and_groups_left_alone_are_another_model() -> None:
    checkpoint, plan = albert(2), KEEP([0, 2, 1, 3])
    assert plan_notes(checkpoint.config, plan) == (
        "ALBERT's 2 groups of shared weights are now stored as 4, as this order of layers needs",
    )
    assert plan_notes(checkpoint.config, KEEP([0, 3])) == ()
    by_hand = sliced_model(checkpoint, [0, 2, 1, 3])
    assert difference(original_model(checkpoint), by_hand) > 1e-3  # groups as they were


def test_layers_inside_a_group_of_albert_go_with_it() -> None:
    checkpoint = checkpoint_of("albert", inner_group_num=2)
    plan = KEEP([2, 0, 3])
    assert difference(planned_model(checkpoint, plan), sliced_model(checkpoint, [2, 0, 3])) < 1e-10
    names = planned_tensors(checkpoint.config, checkpoint.shapes, plan).sources
    assert sum("albert_layer_groups.2.albert_layers.1." in name for name in names) > 10


# ---- the other rows ----


def test_the_table_of_relative_positions_of_t5_stays_first() -> None:
    """The first block alone holds it, and every block uses it; dropped with the block it would be drawn anew."""
    checkpoint, plan = checkpoint_of("t5"), KEEP([1, 2], "encoder")
    bias = "transformer.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    sources = planned_tensors(checkpoint.config, checkpoint.shapes, plan).sources
    assert sources[bias] == ((0, bias),)
    tensors = {checkpoint.written_name(name): checkpoint.tensor(one) for name, ((_, one),) in sources.items()}
    del tensors[checkpoint.written_name(bias)]
    with pytest.raises(CheckpointError, match="missing .*relative_attention_bias"):
        build(planned_config(checkpoint.config, plan), tensors)


def test_a_stack_changes_its_own_count_alone() -> None:
    """T5's decoder is as deep as its encoder unless stated, so it has to be stated."""
    t5 = planned_config(family_config("t5"), KEEP([0, 1], "encoder"))
    assert (t5["num_layers"], t5["num_decoder_layers"]) == (2, 4)
    t5 = planned_config(family_config("t5"), KEEP([0, 1], "decoder"))
    assert (t5["num_layers"], t5["num_decoder_layers"]) == (4, 2)
    bart = planned_config(family_config("bart"), KEEP([0, 1], "decoder"))
    assert (bart["encoder_layers"], bart["decoder_layers"]) == (4, 2)
    clip = planned_config(family_config("clip"), KEEP([0, 1], "vision"))
    assert (clip["text_config"]["num_hidden_layers"], clip["vision_config"]["num_hidden_layers"]) == (3, 2)
    assert clip["vision_config"]["patch_size"] == 4


def test_the_other_name_of_a_count_is_kept_in_step() -> None:
    """Configs that hold both, as BART's do, would else contradict themselves."""
    both = planned_config(family_config("distilbert", num_hidden_layers=4), KEEP([0, 1]))
    assert (both["n_layers"], both["num_hidden_layers"]) == (2, 2)
    assert "num_hidden_layers" not in planned_config(family_config("distilbert"), KEEP([0, 1]))
    bart = family_config("bart", num_hidden_layers=4)
    assert planned_config(bart, KEEP([0, 1], "encoder"))["num_hidden_layers"] == 2
    assert planned_config(bart, KEEP([0, 1], "decoder"))["num_hidden_layers"] == 4


def test_a_count_left_to_the_family_is_stated() -> None:
    config = {key: value for key, value in family_config("bert").items() if key != "num_hidden_layers"}
    assert planned_config(config, KEEP([0, 11]))["num_hidden_layers"] == 2  # BERT's own default is 12


def test_attention_scaled_by_place_lets_no_layer_move() -> None:
    """GPT-2 can divide attention by a layer's number; moved, a layer would be scaled by another."""
    checkpoint = checkpoint_of("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(UsageError, match="moves layer 2 of model 0 to index 1. Only the last layers"):
        planned_config(checkpoint.config, KEEP([0, 2, 3]))
    assert difference(planned_model(checkpoint, KEEP([0, 1, 2])), sliced_model(checkpoint, [0, 1, 2])) < 1e-10
    # The control: what is refused is another model.
    plain = checkpoint_of("gpt2")
    assert difference(planned_model(plain, KEEP([0, 2, 3])), sliced_model(plain, [0, 2, 3])) < 1e-10
    tensors = planned_tensors(plain.config, plain.shapes, KEEP([0, 2, 3])).sources
    made = build(
        {**checkpoint.config, "n_layer": 3},
        {checkpoint.written_name(name): checkpoint.tensor(one) for name, ((_, one),) in tensors.items()},
        torch.float64,
    )
    assert difference(made, sliced_model(checkpoint, [0, 2, 3])) > 1e-4


def test_the_convolution_of_deberta_is_mentioned() -> None:
    """It acts after the first place whichever layer is there: the model equals the sliced one, but not its meaning."""
    config = family_config("deberta-v2")
    assert "convolution" in plan_notes(config, KEEP([1, 2]))[0]
    assert plan_notes(config, KEEP([0, 2])) == ()
    assert plan_notes(family_config("deberta-v2", conv_kernel_size=0), KEEP([1, 2])) == ()


def test_layers_of_their_own_sizes_are_refused() -> None:
    config = family_config("llama", per_layer_config={"1": {"intermediate_size": 16}})
    with pytest.raises(UsageError, match="per_layer_config gives layers different sizes"):
        planned_config(config, KEEP([0, 2]))


def test_lists_of_a_layers_length_that_are_not_by_layer_stay() -> None:
    """Two layers and two kinds of relative attention: the rule is a name, never a length."""
    config = family_config("deberta", num_hidden_layers=2)
    assert planned_config(config, KEEP([1]))["pos_att_type"] == ["c2p", "p2c"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_repeated_layer_has_a_cache_of_its_own(kind: str) -> None:
    """Layers that share one number share a slot of the cache; built from the plan, every one has its own."""
    checkpoint, order = checkpoint_of(kind), [0, 1, 1, 2]
    made = planned_model(checkpoint, KEEP(order))
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.inference_mode():
        cached, plain = made(ids, use_cache=True).logits, made(ids, use_cache=False).logits
        shared = sliced_model(checkpoint, order)(ids, use_cache=True).logits
    assert float((cached - plain).abs().max()) < 1e-10
    assert float((shared - plain).abs().max()) > 1e-3


def test_mismatched_stacks_and_ranges_are_said_of_the_plan() -> None:
    config = family_config("bert")
    with pytest.raises(UsageError, match="layer 1 of the plan is layer 4 of model 0, which has layers 0 to 3"):
        planned_config(config, KEEP([0, 4]))
    with pytest.raises(UsageError, match="only one list of layers, not 'text'"):
        planned_config(config, KEEP([0], "text"))
    with pytest.raises(UsageError, match="models cannot be edited: the architecture is not in the table"):
        planned_config({"model_type": "mamba", "architectures": ["MambaModel"]}, KEEP([0]))
    unchanged = copy.deepcopy(config)
    assert planned_config(config, KEEP([3, 0])) == {**planned_config(config, KEEP([0, 1]))}
    assert config == unchanged
    assert set(STACK) == {"t5", "bart", "clip"}
