"""Alignment of the families whose tensors are fused, grouped, rotary or of images: planted elements are found again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import families_more
import pytest
import torch
import transformers
from architecture_case import Case, make, outputs_of
from families import canonical_tensors, joined, written_name
from families_more import CASES, inputs

from merge.alignment.choice.candidates import choose
from merge.alignment.evidence.proof import prove
from merge.alignment.matchers import aligner
from merge.alignment.pair import Pair
from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import set_weights
from merge.errors import AlignmentError, SpecError
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import Permutation, apply, identity, inverse, random, restrict

FIRST = {config["model_type"]: name for name, config in reversed(CASES.items())}
VARIANTS = (
    "deberta talking",
    "deberta-v2 own positions",
    "roformer rotary values",
    "modernbert with biases",
    "beit relative",
)
NAMES = (*sorted(FIRST.values()), *VARIANTS)
XLNET = FIRST["xlnet"]


def make_pair(name: str, noise: float = 0.0, other_seed: int = 0, batches: int = 20) -> tuple[Pair, Permutation]:
    """Return a pair whose b is a, jittered and re-based by a random element; and the element that brings it back."""
    config = CASES[name]
    structure, spec, a = structure_of(config), spec_for(config), canonical_tensors(config, 0, torch.float32)
    shapes = {name: tuple(tensor.shape) for name, tensor in a.items()}
    generator = torch.Generator().manual_seed(11)
    b = {
        name: tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=generator) if tensor.ndim else tensor
        for name, tensor in canonical_tensors(config, other_seed, torch.float32).items()
    }
    drawn = random(spec, shapes, torch.Generator().manual_seed(1))
    planted = restrict(drawn, set(drawn.indices) - spec.named)
    text = joined([batch for seed in range(batches) for batch in inputs(config, seed)])
    return Pair(spec, a, apply(spec, planted, b), config, lambda n: written_name(structure, n), text), inverse(planted)


def wrong(found: Permutation, wanted: Permutation, axes: Any = None) -> set[str]:
    """Return the axes on which two permutations differ."""
    return {axis for axis in axes or wanted.indices if not torch.equal(found.indices[axis], wanted.indices[axis])}


def test_every_family_is_here() -> None:
    assert len(FIRST) == 17
    assert {CASES[name]["model_type"] for name in NAMES} == {config["model_type"] for config in CASES.values()}


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_element_is_recovered_by_weights(name: str) -> None:
    """On every axis, heads, query heads and what is inside them included, also when b was jittered by a tenth."""
    pair, wanted = make_pair(name, noise=0.1, batches=1)
    found = aligner("weights")(pair)(frozenset(pair.kinds()))
    assert wrong(found.permutation, wanted) == set()
    moved = apply(pair.spec, found.permutation, pair.b)
    assert prove(pair, moved, found.permutation, pair.batches).error < pair.spec.bound
    assert wrong(identity(pair.spec, pair.shapes), wanted) == set(wanted.indices) - pair.spec.named


# Those whose taps are unlike the others'; test_planted_transforms.py finds permutations and maps by activations on all.
TAPPED = [*(FIRST[family] for family in ("llama", "gpt2", "clip", "vit", "deberta", "modernbert")), *VARIANTS]


@pytest.mark.parametrize("name", TAPPED)
@pytest.mark.slow
def test_a_planted_element_is_recovered_by_activations(name: str) -> None:
    """Fused projections show every head at one site; images have no padding; DeBERTa's projections run twice in a pass."""
    pair, wanted = make_pair(name)
    found = aligner("activations")(pair)(frozenset(pair.kinds()))
    assert wrong(found.permutation, wanted) == set()
    assert found.objective[-1] == pytest.approx(1.0, abs=1e-3)
    assert found.objective[0] < 0.5


def test_xlnet_shows_its_stream_and_its_units_but_not_its_heads() -> None:
    """Its attention is one module without linear layers: no hook sees a head's units, and that is said."""
    pair, wanted = make_pair(XLNET)
    matcher = aligner("activations")(pair)
    with pytest.raises(AlignmentError, match='no activation for axis "heads0".* --align weights'):
        matcher(frozenset(pair.kinds()))
    found = matcher(frozenset(pair.kinds()) - {"heads"}).permutation
    assert wrong(found, wanted, ["residual", "ffn0", "ffn1", "summary"]) == set()


@pytest.mark.parametrize("name", [FIRST["llama"], FIRST["gpt2"], FIRST["clip"], FIRST["vit"]])
@pytest.mark.parametrize("by", ["weights", "activations"])
@pytest.mark.slow
def test_two_unrelated_models_match_better_than_chance_and_b_stays_itself(name: str, by: str) -> None:
    """Whatever is found keeps b's function, and the objective never falls below where it began."""
    pair, _ = make_pair(name, other_seed=5, batches=10)
    found = aligner(by)(pair)(frozenset(pair.kinds()))
    assert found.objective[-1] > found.objective[0] + 0.05
    moved = apply(pair.spec, found.permutation, pair.b)
    assert prove(pair, moved, found.permutation, pair.batches).error < pair.spec.bound


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        (FIRST["llama"], "model.layers.1.self_attn.o_proj.weight"),
        (FIRST["gpt2"], "transformer.h.0.attn.c_attn.weight"),
        (XLNET, "transformer.layer.0.rel_attn.r"),
        (FIRST["vit"], "vit.embeddings.position_embeddings"),
    ],
)
def test_the_proof_fails_when_one_tensor_is_left_behind(name: str, tensor: str) -> None:
    """The negative control, under the wider bounds of models that compute in float32 too."""
    pair, back = make_pair(name, batches=1)
    aligned = apply(pair.spec, back, pair.b)
    assert prove(pair, aligned, back, pair.batches).error < pair.spec.bound
    with pytest.raises(AlignmentError, match="is not the model it was"):
        prove(pair, aligned | {tensor: pair.b[tensor]}, back, pair.batches)


@pytest.mark.slow
def test_candidates_know_the_two_streams_of_clip_and_the_heads_of_llama() -> None:
    """What only the task reads, that with units and heads, everything: in families with other words for them too."""
    for name, inside, stream in (
        (FIRST["clip"], {"text_heads", "text_ffn", "vision_heads", "vision_ffn"}, {"text_residual", "vision_residual"}),
        (FIRST["llama"], {"heads", "ffn"}, {"residual"}),
    ):
        pair, _ = make_pair(name, batches=2)
        tried = [
            frozenset(c.alignment.kinds) for c in choose(pair, {"weights": aligner("weights")(pair)}, None).candidates
        ]
        task = frozenset(pair.kinds()) - inside - stream
        assert tried == list(dict.fromkeys([frozenset(), task, task | inside, task | inside | stream]))


def test_a_planted_vision_model_is_aligned_by_its_images() -> None:
    """Scores and proof read pixels, which have no padding; moving everything back is the best candidate."""
    pair, wanted = make_pair("ViTModel", batches=4)
    kept = choose(pair, {"weights": aligner("weights")(pair)}, None).kept
    assert wrong(kept.alignment.permutation, wanted) == set()
    assert kept.score == pytest.approx(0.0, abs=1e-5)


def test_xlnet_is_exact_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers makes its sines in float32, so its battery runs in that; with sines of the model's dtype it is exact."""
    made = transformers.XLNetModel.relative_positional_encoding

    def in_dtype(self: Any, *args: Any, **more: Any) -> torch.Tensor:
        return made(self, *args, **more).to(self.dtype)

    monkeypatch.setattr(transformers.XLNetModel, "relative_positional_encoding", in_dtype)
    config: Mapping[str, Any] = CASES[XLNET]
    single = make(config, families_more)
    model, tensors = single.model.double(), canonical_tensors(config, 0)
    set_weights(model, {written_name(structure_of(config), name): tensor for name, tensor in tensors.items()})
    case = Case(config, single.spec, tensors, model, single.batches, outputs_of(model, single.spec, single.batches))
    p = case.random(1)
    assert case.difference(p) < 1e-9
    for axis in p.indices:
        assert case.difference(restrict(p, [axis])) < 1e-9


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {**CASES["DebertaV2Model"], "conv_kernel_size": 3, "conv_groups": 2},
            "conv_groups 2 has no permutation table",
        ),
        ({**CASES["GPT2Model"], "architectures": ["GPT2DoubleHeadsModel"]}, "no task head 'GPT2DoubleHeadsModel'"),
        ({**CASES[XLNET], "architectures": ["XLNetForQuestionAnswering"]}, "no task head 'XLNetForQuestionAnswering'"),
        ({**CASES["ViTModel"], "architectures": ["ViTForMaskedImageModeling"]}, "no task head 'ViTForMasked"),
        ({**CASES["CLIPModel"], "architectures": ["CLIPModels"]}, "Did you mean 'CLIPModel'"),
    ],
)
def test_what_has_no_table_is_refused_by_name(config: Mapping[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        spec_for(config)


def test_cross_attention_of_gpt2_is_refused_by_the_names_of_its_tensors() -> None:
    config = {**CASES["GPT2Model"], "add_cross_attention": True, "is_decoder": True}
    shapes = {name: tuple(tensor.shape) for name, tensor in canonical_tensors(config, 0).items()}
    with pytest.raises(SpecError, match=r"transformer.h.0.crossattention.c_attn.weight \(24, 48\) has no line"):
        spec_for(config).fit(shapes)
