"""Derived tables: the same groups as the tables written by hand, and no table where the model does not bear it out."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import families
import families_more
import pytest
import torch
from layered import FAMILY, checkpoint_of, family_config, outputs
from quick import quick_on
from tiny import bert_config
from torch import Tensor, nn

from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import build
from merge.errors import SpecError
from merge.symmetry.architectures import spec_for
from merge.symmetry.architectures.derive.derive import Derived, derive, prove_trace
from merge.symmetry.architectures.derive.factors import fix, flat
from merge.symmetry.architectures.derive.lines import write_table
from merge.symmetry.architectures.derive.specimen import specimen_of
from merge.symmetry.architectures.derive.trace import Trace, follow
from merge.symmetry.permutation import apply, apply_axes, random
from merge.symmetry.spec import PermutationSpec, parse

BOUND = 1e-9
BROKEN = 1e-3


def spelt(lines: Mapping[str, str], names: set[str]) -> dict[str, str]:
    """Return lines without roles and names of fixed orders, axes renamed as they first appear: equal groups, equal lines."""
    seen: dict[str, str] = {}
    return {
        name: re.sub(
            r"[A-Za-z_]\w*",
            lambda word: seen.setdefault(word[0], f"x{len(seen)}"),
            re.sub(r"['=]|(?<=-)\w+", "", lines[name]),
        )
        for name in sorted(names)
    }


# What a derived table says differently, and why: end of the tensor -> (by hand, derived), for the cases so named.
UNREAD = "no run reads some tensors, so that nothing that they could read moves"
FINER = "relative positions with projections of their own have an order of their own, which the hand-written table ties"
TEACHER = "the names of two outputs beside `logits` are not known to be classes"
DIFFERENT: dict[str, str] = {
    **dict.fromkeys(("LayoutLMForTokenClassification", "LayoutLMForQuestionAnswering"), UNREAD),
    **dict.fromkeys(("LayoutLMForMaskedLM", "layoutlm untied", "CLIPForImageClassification"), UNREAD),
    **dict.fromkeys((n for n in families_more.CASES if n.startswith(("Deberta", "deberta")) and "V2" not in n), FINER),
    "DeiTForImageClassificationWithTeacher": TEACHER,
}
del DIFFERENT["deberta-v2 content only"]  # it has no relative positions

DIFFERENT_QUICK = ("LayoutLMForMaskedLM", "XLNetModel", "DebertaModel", "DeiTForImageClassificationWithTeacher")

# Heads that differ in nothing a trace sees differently are tried for one family only.
SMALL = ("ForSequenceClassification", "Model", "untied", "GPT2LMHeadModel", "BertForPreTraining")
CASES = {
    name: config
    for name, config in {**families.CASES, **families_more.CASES}.items()
    if name in DIFFERENT or name.endswith(SMALL) or " " in name
}


# One case of each family that differs in kind, and variants in kind.
FIRST = {config["model_type"]: name for name, config in reversed(CASES.items()) if name not in DIFFERENT}
QUICK = {
    *(name for family, name in FIRST.items() if family in families.UNLIKE),
    *(name for name in CASES if " " in name and "untied" not in name),
    "bert untied",
}


@pytest.mark.parametrize("case", quick_on(QUICK, [name for name in CASES if name not in DIFFERENT]))
def test_it_finds_the_groups_of_the_table_written_by_hand(case: str) -> None:
    """Every axis of every tensor: fused, grouped, three-dimensional, tied and shared ones too, labels by name."""
    structure = structure_of(CASES[case])
    hand, derived = spec_for(structure.config), derive(CASES[case])
    names = {families.canonical_name(structure, name) for name in structure.shapes if name not in structure.ties}
    assert spelt(derived.spec.lines, names) == spelt(hand.lines, names)
    assert derived.spec.named <= hand.named
    assert ("labels" in derived.spec.named) == ("labels" in " ".join(hand.lines[name] for name in names))
    assert derived.error <= BOUND


@pytest.mark.parametrize("case", quick_on(DIFFERENT_QUICK, DIFFERENT))
def test_where_it_differs_from_the_hand_it_is_known_why(case: str) -> None:
    """It is proved all the same, and what differs is what the reason says."""
    config = structure_of(CASES[case]).config
    hand, derived = spec_for(config), derive(CASES[case])
    names = set(hand.lines) & set(derived.spec.lines)
    mine, its = spelt(derived.spec.lines, names), spelt(hand.lines, names)
    assert mine != its
    if DIFFERENT[case] == UNREAD:
        assert derived.unread
        assert not any(re.search(r"[a-z]", derived.spec.lines[name]) for name in derived.unread)
        moving = {name for name in names if re.search(r"[a-z]", derived.spec.lines[name])}
        assert moving < {name for name in names if re.search(r"[a-z]", hand.lines[name])}
    elif DIFFERENT[case] == FINER:
        assert derived.spec.lines["deberta.encoder.rel_embeddings.weight"] == "- rel_embeddings"
        tied = {n: re.sub(r"\brel_embeddings\b", "residual", line) for n, line in derived.spec.lines.items()}
        assert spelt(tied, names) == spelt(hand.lines, names)
    else:
        assert any(why.startswith("the order of this output has a meaning") for why in derived.fixed)
        unnamed = {name: re.sub(r"\blabels\b", "-", line) for name, line in hand.lines.items()}
        assert spelt(unnamed, names) == mine


# Two layers show what four do: the kinds of layers that a family has, and that each has axes of its own.
SHALLOW = {**dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers"), 2), "max_window_layers": 1}
SHALLOW |= {"encoder_layers": 2, "decoder_layers": 1}


@pytest.mark.parametrize("family", quick_on({"bert", "gpt2", "modernbert", "t5"}, FAMILY))
def test_it_re_bases_a_checkpoint_of_every_family(family: str) -> None:
    """The proof once more, by the loader and on other weights and inputs: files' own names, tied tensors, outputs that move."""
    checkpoint = checkpoint_of(family, **{key: count for key, count in SHALLOW.items() if key in FAMILY[family][1]})
    derived = derive(checkpoint.config)
    spec, tensors = derived.spec, checkpoint.state_dict()
    dtype = torch.float32 if family == "xlnet" else torch.float64  # XLNet makes positions in float32
    p = random(spec, checkpoint.shapes, torch.Generator().manual_seed(4))

    def ran(version: Mapping[str, Tensor]) -> dict[str, Tensor]:
        model = build(checkpoint.config, {checkpoint.written_name(n): t for n, t in version.items()}, dtype)
        model.set_attn_implementation("eager")
        return outputs(model)

    def error(version: Mapping[str, Tensor]) -> float:
        new, worst = ran(version), 0.0
        for name, line in spec.outputs.items():
            expected = apply_axes(parse(line), p, old[name])
            sound = expected.isfinite()  # ModernBERT: where all in a window is padding, softmax is of nothing
            assert sound.double().mean() >= 0.5
            assert torch.equal(sound, new[name].isfinite())
            worst = max(worst, float((new[name] - expected)[sound].abs().max() / expected[sound].std()))
        return worst

    old, moved = ran(tensors), apply(spec, p, tensors)
    assert error(moved) < spec.bound
    assert error({**moved, **{name: tensors[name] for name in list(tensors)[::2]}}) > BROKEN  # half of it left behind
    kinds = {spec.kind(name) for line in spec.lines.values() for axis in parse(line) for name in axis.axis_names()}
    assert {"residual", "heads", "ffn"} <= kinds


def test_a_tap_carries_what_it_says() -> None:
    """Activations at a tap move as its axis does: activation matching relies on it."""
    from merge.checkpoints.hooks import watching

    config = families_more.CASES["modernbert with biases"]
    spec, specimen = derive(config).spec, specimen_of(structure_of(config))
    shapes = {name: tuple(tensor.shape) for name, tensor in specimen.tensors.items()}
    p = random(spec, shapes, torch.Generator().manual_seed(1))
    sites, seen = spec.sites(), []
    for version in (specimen.tensors, apply(spec, p, specimen.tensors)):
        found: dict[str, torch.Tensor] = {}
        with watching(specimen.model, sites, found.__setitem__, first=True):
            specimen.outputs(version)
        seen.append(found)
    assert len(sites) > 6
    for site, axis in sites.items():
        line = (*parse("- " * (seen[0][site].ndim - 1)), axis)
        assert torch.allclose(apply_axes(line, p, seen[0][site]), seen[1][site], atol=1e-10)
        assert not torch.allclose(seen[0][site], seen[1][site], atol=BROKEN)


def test_heads_told_apart_by_their_slopes_do_not_move() -> None:
    """BLOOM adds to the scores of each head a slope that its place decides; its feed-forward units are free."""
    sizes = {"vocab_size": 18, "hidden_size": 24, "n_layer": 1, "n_head": 4, "pad_token_id": 0}
    derived = derive({"model_type": "bloom", "architectures": ["BloomForCausalLM"], **sizes})
    path = "transformer.h.0"
    assert derived.spec.lines[f"{path}.self_attention.query_key_value.weight"] == "- residual"
    assert derived.spec.lines[f"{path}.mlp.dense_h_to_4h.weight"] == "ffn0 residual"
    assert f"{path}.self_attention.query_key_value.weight[0]" in derived.fixed["constants of the model's code"]


# Small modules with a planted answer.


class Toy(nn.Module):
    """A module of one function of its parameters `w` and `v`, of an input (batch, length, 6), named as an output."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], compute: Callable[..., Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)))
        self.compute = compute

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.compute(x, **dict(self.named_parameters()))}


X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def traced(shapes: Mapping[str, tuple[int, ...]], compute: Callable[..., Tensor]) -> tuple[Trace, dict[str, str]]:
    """Return the trace of a toy and its lines; the output's units keep their order."""
    toy = Toy(shapes, compute)
    trace = follow(toy, dict(toy.named_parameters()), {"x": X})
    fix((f for dim in trace.outputs["out"] for f in dim), "output")
    return trace, dict(write_table(trace).lines)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over (batch, heads, length, units), its heads laid side by side again."""
    return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2)


def fused(layout: str) -> Callable[..., Tensor]:
    """Attention of 3 heads of 4 units whose queries, keys and values are one product, split as the layout says."""

    def compute(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        y = x @ w.T
        if layout == "qkv, heads, units":
            parts = y.view(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        elif layout == "heads, qkv, units":
            parts = y.view(2, 5, 3, 12).transpose(1, 2).chunk(3, -1)
        else:
            parts = [part.view(2, 5, 3, 4).transpose(1, 2) for part in y.split(12, -1)]
        return attend(*parts) @ v.T

    return compute


@pytest.mark.parametrize(
    ("layout", "line"),
    [
        ("qkv, heads, units", "[(x0 x1) | (x0 x1) | (x0 x2)] -"),
        ("q, k, v", "[(x0 x1) | (x0 x1) | (x0 x2)] -"),
        ("heads, qkv, units", "(x0 [x1 | x1 | x2]) -"),
    ],
)
def test_fused_attention_is_read_in_each_of_its_layouts(layout: str, line: str) -> None:
    """Whether a tensor's parts come before its heads or inside them shows only in how the model splits it."""
    _, lines = traced({"v": (6, 12), "w": (36, 6)}, fused(layout))
    assert spelt({"w": lines["w"], "v2": "-"}, {"w"})["w"] == line
    value = re.findall(r"\w+", lines["w"])[-1] if layout != "heads, qkv, units" else re.findall(r"v\w*", lines["w"])[-1]
    assert lines["v"] == f"- ({lines['w'].strip('[(').split()[0]} {value})"


def test_grouped_queries_are_read_on_three_levels() -> None:
    """Two key/value heads of three query heads each: an order inside a head is shared by its group."""

    def compute(x: Tensor, k: Tensor, o: Tensor, q: Tensor, v: Tensor) -> Tensor:
        queries = (x @ q.T).view(2, 5, 6, 4).transpose(1, 2)
        keys, values = ((x @ w.T).view(2, 5, 2, 4).transpose(1, 2) for w in (k, v))
        grown = (t[:, :, None].expand(2, 2, 3, 5, 4).reshape(2, 6, 5, 4) for t in (keys, values))
        return attend(queries, *grown) @ o.T

    _, lines = traced({"k": (8, 6), "o": (6, 24), "q": (24, 6), "v": (8, 6)}, compute)
    expected = {"k": "(x0 x1) -", "o": "- (x0 x2 x3)", "q": "(x0 x2 x1) -", "v": "(x0 x3) -"}
    assert spelt(lines, set(lines)) == expected


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda h: h.cumsum(-1), "its order is used"),
        (lambda h: h * torch.arange(8.0), "constants of the model's code"),
        (lambda h: h.sort(-1).values, "operation sort is not one that can be followed"),
        (lambda h: torch.cat([h[..., 4:], h[..., :4]], -1) * h, "cut at different places"),
        (lambda h: h[..., ::2].sum(-1, keepdim=True) * h, "every so many units are taken"),
        (lambda h: h[:, :, [1, 0, 2, 3, 4, 5, 6, 7]], "units are looked up by number"),
    ],
)
def test_units_told_apart_are_fixed_with_the_reason(use: Callable[[Tensor], Tensor], reason: str) -> None:
    """A hidden layer may move until something uses the place of its units; with nothing of the kind, it moves."""
    shapes = {"v": (6, 8), "w": (8, 6)}
    trace, lines = traced(shapes, lambda x, v, w: use((x @ w.T).tanh()) @ v.T)
    assert lines == {"v": "- -", "w": "- -"} or "cut" in reason
    assert any(reason in f.fixed for f in flat(trace.tensors["w"][0])) or lines["w"].startswith("[")
    _, free = traced(shapes, lambda x, v, w: (x @ w.T).tanh() @ v.T)
    assert free["w"] == f"{free['v'].split()[1]} -" != "- -"


def test_an_operation_no_output_depends_on_fixes_nothing() -> None:
    """Models slice activations to read off a shape; what is thrown away tells no units apart."""

    def compute(x: Tensor, v: Tensor, w: Tensor) -> Tensor:
        h = (x @ w.T).tanh()
        return h.new_ones(h[..., -1].cumsum(-1).shape)[..., None] * (h @ v.T)

    _, lines = traced({"v": (6, 8), "w": (8, 6)}, compute)
    assert lines["w"] == f"{lines['v'].split()[1]} -" != "- -"


def test_channels_of_a_grouped_convolution_move_as_blocks() -> None:
    """What a group makes has an order in it; what it reads would too, but the notation cannot say so of the kernel."""

    def compute(x: Tensor, c: Tensor, v: Tensor, w: Tensor) -> Tensor:
        h = nn.functional.conv1d((x @ w.T).transpose(1, 2), c, padding=1, groups=2)
        return h.transpose(1, 2) @ v.T

    _, lines = traced({"c": (6, 4, 3), "v": (6, 6), "w": (8, 6)}, compute)
    assert spelt(lines, set(lines)) == {"c": "(x0 x1) - -", "v": "- (x0 x1)", "w": "(x0 -) -"}
    toy = Toy({"c": (6, 4, 3), "v": (6, 6), "w": (8, 6)}, compute)
    tensors = {name: tensor.detach().clone() for name, tensor in toy.named_parameters()}
    groups = re.findall(r"\w+", lines["w"])[0]
    spec = PermutationSpec("toy", lines, {groups: 2})
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    drawn = (random(spec, shapes, torch.Generator().manual_seed(seed)) for seed in range(20))
    moved = apply(spec, next(p for p in drawn if p.indices[groups].tolist() == [1, 0]), tensors)
    assert torch.allclose(compute(X, **moved), compute(X, **tensors), atol=1e-10)
    assert not torch.allclose(compute(X, **{**moved, "v": tensors["v"]}), compute(X, **tensors), atol=BROKEN)


def test_one_order_for_all_heads_is_fixed_because_the_notation_has_no_word_for_it() -> None:
    """A gain shared by the heads binds their inner orders together; the heads themselves still move."""

    def compute(x: Tensor, g: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return ((x @ w.T).view(2, 5, 3, 4) * g).flatten(2) @ v.T

    trace, lines = traced({"g": (4,), "v": (6, 12), "w": (12, 6)}, compute)
    assert spelt(lines, set(lines)) == {"g": "-", "v": "- (x0 -)", "w": "(x0 -) -"}
    assert "one order would have to serve all blocks" in trace.tensors["g"][0][0].root.fixed


# Where a trace is wrong, or cannot be had.


def bert_trace(config: dict[str, Any]) -> Callable[[Callable[[Trace], Trace]], Derived]:
    specimen = specimen_of(structure_of(config))
    trace = follow(specimen.model, specimen.model_tensors(), specimen.batches[0])
    reference = specimen.outputs(specimen.tensors)
    return lambda change: prove_trace(specimen, change(trace), reference)


def test_a_coupling_the_trace_misses_is_caught_by_the_proof() -> None:
    """The hidden layer's two ends torn apart: each alone changes the outputs, so both are fixed, and all else stands."""
    config = bert_config(num_hidden_layers=1)
    first, second = (f"bert.encoder.layer.0.{name}.dense" for name in ("intermediate", "output"))

    def torn(trace: Trace) -> Trace:
        from merge.symmetry.architectures.derive.factors import Factor

        other = Factor(40, contexts=[()])
        return dataclasses.replace(
            trace, tensors={**trace.tensors, f"{second}.weight": [trace.tensors[f"{second}.weight"][0], [other]]}
        )

    derived = bert_trace(config)(torn)
    right = derive(config).spec
    assert derived.spec.lines[f"{second}.weight"] == "residual -"
    assert derived.spec.lines[f"{first}.weight"] == "- residual"
    assert derived.fixed["moving it changes the outputs"]
    others = {n for n in right.lines if not n.startswith((first, f"{second}.weight"))}
    assert spelt(derived.spec.lines, others) == spelt(right.lines, others)


def test_a_computation_hidden_from_the_trace_does_not_pass_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that leave torch and come back look like constants; what depends on them must not be said to move freely."""
    from transformers.models.bert.modeling_bert import BertIntermediate

    def hidden(self: Any, states: Tensor) -> Tensor:
        made = self.intermediate_act_fn(self.dense(states)).numpy()
        return torch.from_numpy(made.cumsum(-1) * 0.1)

    config = bert_config(num_hidden_layers=1)
    monkeypatch.setattr(BertIntermediate, "forward", hidden)
    with pytest.raises(SpecError, match=r"no run reads bert.encoder.layer.0.intermediate.dense.weight, which may read"):
        bert_trace(config)(lambda trace: trace)
    monkeypatch.undo()
    assert derive(config).spec.lines["bert.encoder.layer.0.intermediate.dense.weight"] == "ffn0 residual"


def test_fixing_any_one_axis_in_one_line_breaks_the_outputs() -> None:
    """No axis of a derived table is idle, the key bias excepted: softmax cancels it."""
    config = families.family_case("bert", "ForSequenceClassification", num_hidden_layers=1)
    spec, specimen = derive(config).spec, specimen_of(structure_of(config))
    shapes = {name: tuple(tensor.shape) for name, tensor in specimen.tensors.items()}
    p = random(spec, shapes, torch.Generator().manual_seed(5))
    reference = specimen.outputs(specimen.tensors)

    def error(mutant: PermutationSpec) -> float:
        found = specimen.outputs(apply(mutant, p, specimen.tensors))
        pairs = [
            (apply_axes(parse("- labels"), p, a["logits"]), b["logits"]) for a, b in zip(reference, found, strict=True)
        ]
        return max(float((a - b).abs().max() / a.std()) for a, b in pairs)

    assert error(spec) < BOUND
    tried, idle = 0, []
    for name, line in spec.lines.items():
        items = re.findall(r"\([^)]*\)|\S+", line)
        for place, word in enumerate(items):
            if word == "-":
                continue
            tried += 1
            broken = " ".join("-" if at == place else item for at, item in enumerate(items))
            if error(dataclasses.replace(spec, lines={**spec.lines, name: broken})) < BROKEN:
                idle.append(name)
    assert tried == 5 + 14 + 8 + 3 + 3  # embeddings, attention, feed-forward, pooler, classifier
    assert idle == ["bert.encoder.layer.0.attention.self.key.bias"]


def test_what_cannot_be_derived_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = {"model_type": "audio-spectrogram-transformer", "architectures": ["ASTModel"], "hidden_size": 24}
    sound |= {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
    with pytest.raises(SpecError, match=r"'audio-spectrogram-transformer' \(ASTModel\).*does not run on random inputs"):
        derive(sound)
    monkeypatch.setattr("merge.symmetry.architectures.derive.specimen.MAX_PARAMETERS", 1000)
    with pytest.raises(SpecError, match="parameters are more than the 1,000 that are proved. Merge without alignment"):
        derive(bert_config(num_hidden_layers=1, hidden_size=36))


def test_a_model_in_which_nothing_moves_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table without an axis would pass any proof."""
    from transformers.models.bert.modeling_bert import BertModel

    forward = BertModel.forward

    @functools.wraps(forward)
    def in_order(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = forward(self, *args, **kwargs)
        found["last_hidden_state"] = found["last_hidden_state"].sort(-1).values
        found["pooler_output"] = found["pooler_output"].sort(-1).values
        return found

    monkeypatch.setattr(BertModel, "forward", in_order)
    with pytest.raises(SpecError, match="nothing in it can be moved. Not moved: .* axes \\(operation sort is not one"):
        bert_trace(bert_config("BertModel", num_hidden_layers=0))(lambda trace: trace)


def test_the_note_says_where_the_table_is_from_and_what_it_does_not_see() -> None:
    note = derive(family_config("roformer")).note
    assert "roformer has no permutation table; one was derived from a run of the model" in note
    assert "axes ffn, heads, residual" in note
    assert "every so many units are taken" in note
    assert "encoder.layer.0.attention.self.query.weight[0]" in note
    assert "Not moved" not in derive(family_config("bert")).note


@pytest.mark.slow
def test_a_run_with_target_mapping_reads_what_text_alone_does_not() -> None:
    assert derive(family_config("xlnet")).spec.lines["transformer.mask_emb"] == "- - residual"


def test_deriving_changes_no_global_state() -> None:
    """Building a model draws from the global generator; a run's own randomness must not depend on it."""
    config = bert_config(num_hidden_layers=1, intermediate_size=44)
    before = torch.random.get_rng_state()
    derive(config)
    assert torch.equal(before, torch.random.get_rng_state())
