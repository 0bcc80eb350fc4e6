"""The battery of inputs: a table is proved on every input that forward takes, and a wrong line that only a rare input
reads does not pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from architecture_case import CASES as BY_HAND
from families import SIZES, canonical_tensors, written_name
from torch import Tensor

from merge.alignment.evidence.proof import prove
from merge.alignment.pair import Pair
from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import build
from merge.errors import AlignmentError, SpecError
from merge.symmetry.architectures import spec_for
from merge.symmetry.architectures.derive.derive import derive
from merge.symmetry.architectures.derive.specimen import Specimen, specimen_of
from merge.symmetry.forward.parameters import PARTS, parameters_of
from merge.symmetry.permutation import apply, apply_axes, random
from merge.symmetry.spec import PermutationSpec, parse

Outputs = list[dict[str, Tensor]]
BROKEN = 1e-3
BOUND = 1e-9


def config_of(model_type: str, architecture: str, **changes: Any) -> dict[str, Any]:
    return {**SIZES, "model_type": model_type, "architectures": [architecture], **changes}


LUKE = {"entity_vocab_size": 9, "entity_emb_size": 7}
BART = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4} | {
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "decoder_start_token_id": 2,
    "dropout": 0.0,
}
XPATHS = {"max_xpath_tag_unit_embeddings": 10, "max_xpath_subs_unit_embeddings": 11, "tag_pad_id": 9, "subs_pad_id": 10}
XLM = {"vocab_size": 18, "emb_dim": 24, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 32, "n_langs": 2}
DERIVED: dict[str, dict[str, Any]] = {
    "cross-attention": config_of("bert-generation", "BertGenerationDecoder", is_decoder=True, add_cross_attention=True),
    "entities": config_of("luke", "LukeModel", **LUKE),
    "regions of an image": config_of("visual_bert", "VisualBertModel", visual_embedding_dim=11),
    "an encoder's outputs and keys and values": {"vocab_size": 18, "max_position_embeddings": 32, "pad_token_id": 1}
    | {"model_type": "bart", "architectures": ["BartModel"], **BART},
    "languages": {"model_type": "xlm", "architectures": ["XLMModel"], **XLM, "pad_index": 1, "dropout": 0.0},
    "languages of adapters": config_of("xmod", "XmodModel", languages=["en_XX", "de_DE"], default_language="en_XX"),
    "shapes and sounds": config_of("roc_bert", "RoCBertModel", shape_vocab_size=6, pronunciation_vocab_size=7),
    "paths in a page": config_of("markuplm", "MarkupLMModel", max_depth=4, xpath_unit_hidden_size=5, **XPATHS),
    "columns of a table": config_of("tapas", "TapasModel", type_vocab_sizes=[3, 4, 4, 2, 4, 4, 2]),
    "boxes and an image": config_of(
        "layoutlmv3", "LayoutLMv3Model", coordinate_size=4, shape_size=4, input_size=8, patch_size=4
    )
    | {"max_2d_position_embeddings": 30},
    "spans of entities": config_of("luke", "LukeForEntitySpanClassification", **LUKE),
    "keys and values": config_of("gpt_neox", "GPTNeoXModel"),
    "global attention": config_of("longformer", "LongformerModel", attention_window=4),
}
QUICK = ("cross-attention", "entities", "regions of an image")
SLOW = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in DERIVED]


def whole(config: Mapping[str, Any]) -> Specimen:
    return specimen_of(structure_of(config)).with_all_inputs()


def errors(specimen: Specimen, spec: PermutationSpec, tensors: Mapping[str, Tensor], before: Outputs) -> list[float]:
    """Return for each run how far these tensors, said to be permuted by element 3 of the spec, are from it."""
    shapes = {name: tuple(tensor.shape) for name, tensor in specimen.tensors.items()}
    p, found = random(spec, shapes, torch.Generator().manual_seed(3)), []
    for old, new in zip(before, specimen.outputs(tensors), strict=True):
        worst = 0.0
        for name in old.keys() & spec.outputs.keys():
            expected = apply_axes(parse(spec.outputs[name]), p, old[name]).double()
            worst = max(worst, float((new[name] - expected).abs().max() / expected.std()))
        found.append(worst)
    return found


def moved(specimen: Specimen, spec: PermutationSpec) -> dict[str, Tensor]:
    shapes = {name: tuple(tensor.shape) for name, tensor in specimen.tensors.items()}
    return apply(spec, random(spec, shapes, torch.Generator().manual_seed(3)), specimen.tensors)


@pytest.mark.parametrize("case", SLOW)
def test_every_parameter_of_forward_is_given_by_a_run_of_the_proof(case: str) -> None:
    """Or the model returns no state of the kind, or it has no part that reads it, or it is an answer or a switch."""
    specimen = whole(DERIVED[case])
    parameters = parameters_of(specimen.model)
    given = frozenset().union(*(run.given for run in specimen.runs))
    wanted = {*parameters.inputs, *parameters.embedded, *parameters.switches}
    assert not specimen.others.refused
    assert wanted - given <= PARTS.keys()
    spec = derive(DERIVED[case]).spec
    assert max(errors(specimen, spec, moved(specimen, spec), specimen.outputs(specimen.tensors))) < BOUND


@pytest.mark.parametrize("case", [*QUICK[1:], "shapes and sounds"])
@pytest.mark.slow
def test_every_tensor_left_behind_shows_in_a_run_of_the_proof(case: str) -> None:
    """The negative control: also those that text alone does not read, on which a proof on text is blind."""
    config = {**DERIVED[case], "num_hidden_layers": 1}
    specimen, spec = whole(config), derive(config).spec
    whole_model, before, blind, idle = moved(specimen, spec), specimen.outputs(specimen.tensors), set(), set()
    for name, tensor in specimen.tensors.items():
        if torch.equal(whole_model[name], tensor):
            continue
        found = errors(specimen, spec, {**whole_model, name: tensor}, before)
        if max(found) < BROKEN:
            idle.add(name)
        elif max(found[: len(specimen.batches)]) < BOUND:
            blind.add(name)
    # What softmax cancels: the same number added to all scores of a query.
    assert all(name.endswith("key.bias") for name in idle)
    assert bool(blind) == (case in QUICK)


def test_entities_by_the_models_own_code() -> None:
    """The kind once more without our runs: LUKE with entities, by transformers alone, before and after."""
    config = structure_of(DERIVED["entities"]).config
    structure, spec, tensors = structure_of(config), spec_for(config), canonical_tensors(config, 0)
    p = random(spec, {n: tuple(t.shape) for n, t in tensors.items()}, torch.Generator().manual_seed(1))
    text = {**random_inputs(config)[0], "entity_ids": torch.tensor([[1, 8]] * 4)}
    text["entity_position_ids"] = torch.tensor([[[1, 2, -1], [4, -1, -1]]] * 4)
    with torch.no_grad():
        before, after = (
            build(config, {written_name(structure, n): t for n, t in version.items()})(**text)
            for version in (tensors, apply(spec, p, tensors))
        )
    for name in ("last_hidden_state", "entity_last_hidden_state"):
        expected = apply_axes(parse(spec.outputs[name]), p, before[name])
        assert float((after[name] - expected).abs().max()) < BOUND
        assert float((after[name] - before[name]).abs().max()) > BROKEN


def test_an_axis_that_a_tensor_no_run_reads_could_have_does_not_move() -> None:
    """ESM's contact head reads all heads in order, and no input of forward leads to it; feed-forward units are free."""
    derived = derive(config_of("esm", "EsmModel", mask_token_id=3))
    assert "esm.contact_head.regression.weight" in derived.unread
    assert {derived.spec.kind(n) for line in derived.spec.outputs.values() for a in parse(line) for n in a.names} <= {
        "residual",
        "pooler",
    }
    assert not any("heads" in line for line in derived.spec.lines.values())
    assert any("ffn0" in line for line in derived.spec.lines.values())
    assert "no run reads esm.contact_head.regression.weight, which may read them" in derived.note


def test_an_input_that_cannot_be_made_up_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match=r"takes inputs that no run of it could be given: image_embeds \(nothing is"):
        derive(config_of("vilt", "ViltModel", image_size=8, patch_size=4))


def test_a_proof_whose_outputs_show_nothing_is_no_proof() -> None:
    """This head gives -inf or the like for whatever regions are made up: all outputs are equal whatever moves."""
    config = config_of("visual_bert", "VisualBertForRegionToPhraseAlignment", visual_embedding_dim=11)
    with pytest.raises(SpecError, match="do not show whether its units are in their places"):
        derive(config)


STANDING_BY_HAND = (
    "LayoutLMForSequenceClassification",
    "XLNetForSequenceClassification",
    "ErnieForSequenceClassification",
    "BertForSequenceClassification",
    "GPT2ForSequenceClassification",
    "CLIPModel",
)


@pytest.mark.parametrize("case", STANDING_BY_HAND)
def test_tables_by_hand_hold_for_every_input_too(case: str) -> None:
    specimen = whole(BY_HAND[case][0])
    spec = spec_for(specimen.structure.config)
    assert not specimen.others.refused
    assert max(errors(specimen, spec, moved(specimen, spec), specimen.outputs(specimen.tensors))) < BOUND


@pytest.mark.parametrize(
    ("case", "tensor"),
    [
        ("XLNetForSequenceClassification", "transformer.mask_emb"),
        ("LayoutLMForSequenceClassification", "layoutlm.embeddings.h_position_embeddings.weight"),
        ("ErnieForSequenceClassification", "ernie.embeddings.task_type_embeddings.weight"),
    ],
)
def test_the_proof_of_a_merge_reads_what_its_text_does_not(case: str, tensor: str) -> None:
    """A tensor that text does not read, left behind: the run stops, and names the inputs that showed it."""
    config = structure_of(BY_HAND[case][0]).config
    structure, spec, b = structure_of(config), spec_for(config), canonical_tensors(config, 0)
    shapes = {name: tuple(tensor.shape) for name, tensor in b.items()}
    p = random(spec, shapes, torch.Generator().manual_seed(1))
    text = {n: v for n, v in random_inputs(config)[0].items() if n in ("input_ids", "attention_mask")}
    # Of a table of rows, text reads the first at most.
    wrong = b[tensor].clone()
    wrong.reshape(-1, wrong.shape[-1])[0] = apply(spec, p, b)[tensor].reshape(-1, wrong.shape[-1])[0]
    wrong = b[tensor] if case.startswith("XLNet") else wrong
    pair = Pair(spec, b, b, config, lambda name: written_name(structure, name), (text,))
    aligned = apply(spec, p, b)
    assert prove(pair, aligned, p, (text,)).error < spec.bound
    with pytest.raises(AlignmentError, match=r"is not the model it was.*given \w+"):
        prove(pair, {**aligned, tensor: wrong}, p, (text,))
