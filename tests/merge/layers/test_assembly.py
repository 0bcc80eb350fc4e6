"""What a plan makes of one or two models, bit for bit what is made by hand of their modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from layered import FAMILY, STACK, checkpoint_of, difference, original_model, sliced_model
from quick import quick_on

from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import MismatchError, UsageError
from merge.layers.assembly import assemble
from merge.layers.parts import PARTS
from merge.layers.plans.plan import LayerPlan
from merge.layers.plans.text import parse_plan
from merge.layers.stacks import FAMILIES

# Families whose layers put norms first and add to the stream alone: a zeroed layer changes nothing.
IDENTITY = ("gpt2", "llama", "mistral", "megatron-bert", "modernbert", "opt", "qwen2", "qwen3", "gpt_neox", "vit", "t5")


def layers_of(model: Any, kind: str) -> torch.nn.ModuleList:
    found: torch.nn.ModuleList = model.get_submodule(FAMILY[kind][2])
    return found


def made_by_hand(checkpoint: Checkpoint, order: Sequence[int], index: int, make: Callable[..., torch.Tensor]) -> Any:
    """Return the sliced model whose layer `index` has parameters made of those of the two layers that were there."""
    kind = checkpoint.model_type
    whole = layers_of(sliced_model(checkpoint, range(4)), kind)
    model = sliced_model(checkpoint, order)
    pair = [dict(whole[order[index] + k].named_parameters()) for k in (0, 1)]
    with torch.no_grad():
        for name, parameter in layers_of(model, kind)[index].named_parameters():
            if "relative_attention_bias" not in name:
                parameter.copy_(make(pair[0][name].float(), pair[1][name].float()))
    return model


PLANS: dict[str, tuple[str, Callable[[Checkpoint], Any]]] = {
    "drop": ("A[0,1,3]", lambda c: sliced_model(c, [0, 1, 3])),
    "swap": ("A0, A2, A1, A3", lambda c: sliced_model(c, [0, 2, 1, 3])),
    "reverse but the first": ("A0, A[3-1]", lambda c: sliced_model(c, [0, 3, 2, 1])),
    "duplicate": ("A[0-2], A[2]*2, A3", lambda c: sliced_model(c, [0, 1, 2, 2, 2, 3])),
    "SOLAR": ("A[0-2], A[1-3]", lambda c: sliced_model(c, [0, 1, 2, 1, 2, 3])),
    "mean": ("A0, mean(A1, A2), A3", lambda c: made_by_hand(c, [0, 1, 3], 1, lambda a, b: (a + b) / 2)),
    "laco": ("A0, laco(A[1-2]), A3", lambda c: made_by_hand(c, [0, 1, 3], 1, lambda a, b: a + (b - a))),
}


def fitting(kind: str, plan: str) -> bool:
    """Return whether a family has layers that this plan may put there: of one type, with the first in its place."""
    return not (
        plan in ("mean", "laco") and kind in ("qwen2", "qwen3", "gemma2", "gemma3_text", "modernbert", "smollm3")
    )


# Copies in any order are made by hand for every family in plans/test_plan.py; here they are on those that differ in kind.
MERGES, COPIED = ("mean", "laco"), ("bert", "albert", "llama")
CASES = [
    (kind, plan) for kind in FAMILY for plan in PLANS if fitting(kind, plan) and (plan in MERGES or kind in COPIED)
]
QUICK = [("bert", "mean"), ("albert", "laco"), ("llama", "mean"), ("llama", "SOLAR"), ("albert", "duplicate")]


@pytest.mark.parametrize("case", quick_on(QUICK, CASES), ids="-".join)
def test_every_kind_of_plan_is_what_hands_make_of_the_modules(case: tuple[str, str]) -> None:
    """In the families' own modules, not by names of tensors; outputs are equal to the last bit."""
    kind, plan = case
    checkpoint = checkpoint_of(kind)
    text, by_hand = PLANS[plan]
    dtype = torch.float32 if kind == "xlnet" else torch.float64
    made = assemble([checkpoint], parse_plan(text, ["A"], STACK.get(kind, ""))).build(dtype)
    model = by_hand(checkpoint)
    assert difference(made, model) == 0.0
    assert difference(made, original_model(checkpoint)) > 1e-6


def test_three_layers_are_collapsed_by_the_formula_of_laco() -> None:
    """t1 + (t2 - t1) + (t3 - t1), and not layer 3, which subtracting in place would leave."""
    checkpoint = checkpoint_of("bert")
    made = layers_of(assemble([checkpoint], parse_plan("A0, laco(A[1-3])", ["A"])).build(torch.float64), "bert")
    one, two, three = (dict(layers_of(original_model(checkpoint), "bert")[k].named_parameters()) for k in (1, 2, 3))
    for name, parameter in made[1].named_parameters():
        due = one[name].double() + (two[name] - one[name]) + (three[name] - one[name])
        assert torch.allclose(parameter, due, atol=1e-6)
        assert not torch.allclose(parameter, three[name].double(), atol=1e-3)


def test_at_least_twelve_families_have_every_kind_of_plan() -> None:
    assert sum(all(fitting(kind, plan) for plan in PLANS) for kind in FAMILY) >= 12


@pytest.mark.parametrize("kind", quick_on(("gpt2", "llama"), IDENTITY))
def test_a_zeroed_layer_changes_nothing_where_norms_come_first(kind: str) -> None:
    """LLaMA Pro: equal to the last bit, with a copy of a layer in the middle; the same copy unzeroed does change it."""
    checkpoint, stack = checkpoint_of(kind), STACK.get(kind, "")
    dtype = torch.float64
    zeroed, copied = (
        assemble([checkpoint], parse_plan(text, ["A"], stack)).build(dtype)
        for text in ("A[0-2], zero(A2), A3", "A[0-2], A2, A3")
    )
    assert difference(zeroed, original_model(checkpoint)) == 0.0
    assert difference(copied, original_model(checkpoint)) > 1e-6


def test_a_zeroed_layer_of_bert_norms_what_it_reads() -> None:
    checkpoint = checkpoint_of("bert")
    made = assemble([checkpoint], parse_plan("A[0-3], zero(A3)", ["A"])).build(torch.float64)
    by_hand = sliced_model(checkpoint, [0, 1, 2, 3, 3])
    last = layers_of(by_hand, "bert")[4]
    with torch.no_grad():
        for part in (last.attention.output.dense, last.output.dense):
            part.weight.zero_()
            part.bias.zero_()
    assert difference(made, by_hand) == 0.0
    assert difference(made, original_model(checkpoint)) > 1e-3


BERT_PARTS = ("attention.output.dense", "output.dense")
LLAMA_PARTS = ("self_attn", "mlp")
# The modules of a layer whose outputs are what attention and the feed-forward part add, by family; written out by hand.
SUBLAYERS = {
    **dict.fromkeys(("bert", "roberta", "camembert", "electra", "ernie", "data2vec-text", "deberta", "deberta-v2"), BERT_PARTS),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), LLAMA_PARTS),
    "distilbert": ("attention.out_lin", "ffn.lin2"),
    "mpnet": ("attention.attn.o", "output.dense"),
    "megatron-bert": BERT_PARTS,
    "gpt2": ("attn", "mlp"),
    "gpt_neox": ("attention", "mlp"),
    "modernbert": ("attn", "mlp"),
    "opt": ("self_attn", "fc2"),
    "t5": ("layer.0.SelfAttention", "layer.1.DenseReluDense"),
}  # fmt: skip
WHOLE = [(kind, part) for kind in SUBLAYERS for part in ("attention", "ffn")]


def silenced(_module: Any, _arguments: Any, output: Any) -> Any:
    """A forward hook: the module writes zeros."""
    return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)


@pytest.mark.parametrize(
    "case", quick_on([("bert", "ffn"), ("llama", "attention"), ("t5", "ffn")], WHOLE), ids="-".join
)
def test_a_layer_without_a_sublayer_is_one_whose_module_writes_zeros(case: tuple[str, str]) -> None:
    """Equal to the last bit, in more than twelve families; the same model with its sublayer is another."""
    kind, part = case
    checkpoint = checkpoint_of(kind)
    plan = parse_plan(f"A[0], A[1]-{part}, A[2-3]", ["A"], STACK.get(kind, ""))
    made = assemble([checkpoint], plan).build(torch.float64)
    model = original_model(checkpoint)
    layers_of(model, kind)[1].get_submodule(SUBLAYERS[kind][part == "ffn"]).register_forward_hook(silenced)
    assert difference(made, model) == 0.0
    assert difference(made, original_model(checkpoint)) > 1e-6


def test_a_norm_goes_with_its_sublayer_where_norms_come_first() -> None:
    """There it is read by the sublayer alone, so the model is the same; where it comes last no checkpoint can leave it out."""
    llama = checkpoint_of("llama")
    kept, gone = (
        assemble([llama], parse_plan(f"A0, A[1]-ffn{norm}, A[2-3]", ["A"])).build(torch.float64)
        for norm in ("", "-norm")
    )
    assert difference(kept, gone) == 0.0
    with pytest.raises(
        UsageError, match=r"no checkpoint of bert can leave that norm out\. Leave -norm out of the plan"
    ):
        assemble([checkpoint_of("bert")], parse_plan("A0, A[1]-ffn-norm", ["A"]))
    with pytest.raises(UsageError, match="no sublayer 'cross'"):
        assemble([checkpoint_of("bert")], parse_plan("A0, A[1]-cross", ["A"]))


def test_one_layer_of_albert_loses_its_sublayer_alone() -> None:
    """Layers that share weights are untied for it."""
    checkpoint = checkpoint_of("albert")
    plan = parse_plan("A[0], A[1]-ffn, A[2-3]", ["A"])
    made = assemble([checkpoint], plan).build(torch.float64)
    groups = made.albert.encoder.albert_layer_groups
    zero = [not group.albert_layers[0].ffn_output.weight.any() for group in groups]
    assert zero == [False, True, False, False]


def test_every_family_has_its_parts() -> None:
    stacks = {(kind, stack.name) for kind, family in FAMILIES.items() for stack in family.stacks}
    assert stacks == set(PARTS)


def test_a_splice_has_the_embeddings_of_the_first_and_the_head_of_the_last() -> None:
    a, b = checkpoint_of("bert", 0), checkpoint_of("bert", 1)
    made = assemble([a, b], parse_plan("A[0-1], mean(0.25*A2, 0.75*B2), B3", ["A", "B"])).build(torch.float64)
    model, other = original_model(b), original_model(a)
    with torch.no_grad():
        pairs = zip(model.bert.encoder.layer[2].parameters(), other.bert.encoder.layer[2].parameters(), strict=True)
        for mine, its in pairs:
            mine.copy_(0.25 * its.float() + 0.75 * mine.float())
    model.bert.embeddings = copy.deepcopy(other.bert.embeddings)
    model.cls.predictions.decoder.weight = model.bert.embeddings.word_embeddings.weight
    model.bert.encoder.layer = torch.nn.ModuleList([*other.bert.encoder.layer[:2], *model.bert.encoder.layer[2:]])
    assert difference(made, model) < 1e-6
    assert difference(made, original_model(b)) > 1e-3


def test_a_splice_of_a_model_with_itself_is_the_model() -> None:
    a = checkpoint_of("bert")
    made = assemble([a, a], parse_plan("A[0-1], B[2-3]", ["A", "B"])).build(torch.float64)
    assert difference(made, original_model(a)) == 0.0


MISFITS = {
    "hidden_size": (48, "hidden_size is 24 in"),
    "hidden_act": ("relu", "hidden_act is 'gelu' in"),
    "layer_norm_eps": (1e-3, "layer_norm_eps is 1e-12 in"),
    "num_attention_heads": (2, "num_attention_heads is 4 in"),
    "max_position_embeddings": (64, "max_position_embeddings is 32 in"),
}


@pytest.mark.parametrize("key", MISFITS)
def test_models_that_do_not_fit_are_refused_with_both_values(key: str) -> None:
    value, words = MISFITS[key]
    a, b = checkpoint_of("bert"), checkpoint_of("bert", **{key: value})
    with pytest.raises(MismatchError, match=f"do not fit together: .*{words}"):
        assemble([a, b], parse_plan("A0, B1", ["A", "B"]))


def test_a_model_that_the_plan_leaves_out_is_named() -> None:
    a, b = checkpoint_of("bert"), checkpoint_of("bert", 1)
    with pytest.raises(UsageError, match="uses no layer of"):
        assemble([a, b], parse_plan("A0, A1", ["A", "B"]))


def test_no_layer_at_all_where_a_family_can() -> None:
    made = assemble([checkpoint_of("bert")], LayerPlan.none()).build(torch.float64)
    assert len(made.bert.encoder.layer) == 0
    for kind in ("albert", "t5"):
        with pytest.raises(UsageError, match="needs at least one layer"):
            assemble([checkpoint_of(kind)], LayerPlan.none(STACK.get(kind, "")))
