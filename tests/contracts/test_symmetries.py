"""The battery of the groups: on every family a random element keeps the outputs, and every neighbouring claim is false.

What each case came to is written to docs/symmetries.md by `make symmetries-table`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from architecture_case import CASES, FIRST, STANDING, Case, Outputs, first_of, make, outputs_of, standing_case
from false_symmetries import BERT, DEBERTA_V2, WRONG, Wrong
from families import UNLIKE, canonical_tensors
from quick import quick_on
from random_transforms import random_transform
from torch import Tensor

from merge.checkpoints.structure import structure_of
from merge.errors import SpecError
from merge.symmetry.architectures import ARCHITECTURES, spec_for
from merge.symmetry.groups import GROUPS
from merge.symmetry.spec import PermutationSpec, parse
from merge.symmetry.transform import (
    Transform,
    apply_transform,
    apply_transform_axes,
    axis_sizes,
    check_transform,
    compose,
    folded_spec,
    identity_transform,
    inverse,
    restrict_transform,
)
from merge.symmetry.transform_files import load_transform, save_transform

# What breaks moves the outputs by tenths of a standard deviation; nothing lies between this and a table's bound.
BROKEN = 0.05


def case_of(name: str) -> Case:
    return standing_case(name) if name in STANDING else make(*CASES[name])


def drawn(case: Case, seed: int, spec: PermutationSpec | None = None) -> Transform:
    """Return a random element of every group that moves every axis: of three labels, one draw in six leaves all in place."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        found = random_transform(spec or case.spec, case.shapes, generator)
        if all(moved for moved, _ in found.permutation.moved().values()):
            return found


def expected(case: Case, t: Transform) -> Outputs:
    """Return the first outputs, in the basis that the table says outputs are in."""
    lines = {name: parse(line) for name, line in case.spec.outputs.items()}
    return [{name: apply_transform_axes(lines[name], t, old[name]) for name in lines} for old in case.reference]


def difference(case: Case, t: Transform, spec: PermutationSpec | None = None) -> float:
    """Return how far the model under t is from itself, in standard deviations; under a wrong table if one is given."""
    case.set(apply_transform(spec or case.spec, t, case.tensors))
    return case.off(expected(case, t))


def kinds_of(case: Case) -> dict[str, list[str]]:
    """Return axis without its layer's number -> its axes."""
    found: dict[str, list[str]] = {}
    for axis in axis_sizes(case.spec, case.shapes):
        found.setdefault(axis.rstrip("0123456789"), []).append(axis)
    return found


@pytest.mark.slow
def test_every_family_and_every_group_is_in_this_battery() -> None:
    """A family or a group cannot be listed without being tested."""
    used = {
        case_of(name).spec.group(axis)
        for name in STANDING
        for axis in axis_sizes(case_of(name).spec, case_of(name).shapes)
    }
    # Rotations of the stream are tested on folded models below; `none` is for tables to come.
    assert GROUPS.keys() - used == {"orthogonal_one", "none"}
    assert FIRST.keys() == ARCHITECTURES.keys()
    assert len(STANDING) == len(set(STANDING)) >= 45


@pytest.mark.parametrize("name", quick_on(STANDING, CASES))
def test_a_random_element_of_all_groups_keeps_the_outputs(name: str) -> None:
    case = case_of(name)
    t = drawn(case, 1)
    check_transform(case.spec, t)
    assert len(t.maps) >= 4
    assert difference(case, t) < case.spec.bound < BROKEN


@pytest.mark.parametrize("name", quick_on([FIRST[family] for family in UNLIKE], STANDING))
def test_a_random_element_of_each_group_alone_keeps_the_outputs(name: str, request: pytest.FixtureRequest) -> None:
    """Nothing hides behind another axis; and each of them does change the weights."""
    case = case_of(name)
    t = drawn(case, 2)
    for kind, axes in kinds_of(case).items():
        alone = restrict_transform(t, axes)
        moved = apply_transform(case.spec, alone, case.tensors)
        assert any(not torch.equal(moved[n], case.tensors[n]) for n in moved)
        error = difference(case, alone)
        assert error < case.spec.bound
        row = {"case": name, "axis": kind, "group": case.spec.group(axes[0]), "error": f"{error:.0e}"}
        row["family"] = case.config["model_type"]
        request.node.user_properties.append(("symmetry table", row))


@pytest.mark.parametrize("name", quick_on([FIRST[family] for family in UNLIKE], FIRST.values()))
def test_the_elements_are_a_group(name: str) -> None:
    """One after the other is their composition; there and back again is where one was; on tensors, not on index arrays."""
    case = case_of(name)
    t, u = drawn(case, 3), drawn(case, 4)
    one_by_one = apply_transform(case.spec, t, apply_transform(case.spec, u, case.tensors))
    assert farthest(apply_transform(case.spec, compose(t, u), case.tensors), one_by_one) < 1e-10
    assert farthest(apply_transform(case.spec, compose(u, t), case.tensors), one_by_one) > BROKEN
    back = apply_transform(case.spec, inverse(t), apply_transform(case.spec, t, case.tensors))
    assert farthest(back, case.tensors) < 1e-10
    assert farthest(apply_transform(case.spec, compose(inverse(t), t), case.tensors), case.tensors) < 1e-10
    check_transform(case.spec, compose(t, u))
    check_transform(case.spec, inverse(t))


def farthest(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Return the largest difference of any entry, as a share of the largest entry of its tensor."""
    assert left.keys() == right.keys()
    return max(
        float((left[n] - right[n]).abs().max() / right[n].abs().max()) for n in left if left[n].is_floating_point()
    )


@pytest.mark.parametrize("name", quick_on([FIRST[family] for family in UNLIKE], FIRST.values()))
def test_a_saved_element_is_the_one_that_is_loaded(name: str, tmp_path: Path) -> None:
    case = case_of(name)
    t = drawn(case, 5)
    save_transform(case.spec, t, tmp_path / "transform.safetensors")
    again = load_transform(case.spec, tmp_path / "transform.safetensors")
    moved = apply_transform(case.spec, t, case.tensors)
    assert all(torch.equal(moved[n], new) for n, new in apply_transform(case.spec, again, case.tensors).items())
    assert [path.name for path in tmp_path.iterdir()] == ["transform.safetensors"]


def test_tied_tensors_are_still_tied() -> None:
    """A decoder that is the embedding table goes the way of both its lines: they must agree, on every family that ties."""
    seen = set()
    for config, _ in CASES.values():
        structure, spec, tensors = structure_of(config), spec_for(config), canonical_tensors(config, 0)
        tied = [(n, twin) for n, twin in structure.ties.items() if n in spec.lines and twin in tensors]
        if not tied or spec.family in seen:
            continue
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        t = random_transform(spec, shapes, torch.Generator().manual_seed(6))
        for name, twin in tied:
            moved = apply_transform(spec, t, {name: tensors[twin], twin: tensors[twin]})
            assert farthest({name: moved[name]}, {name: moved[twin]}) < 1e-12
            if moved[name].ndim == 2:
                assert not torch.equal(moved[name], tensors[twin])
                seen.add(spec.family)
    assert len(seen) >= 20


@pytest.mark.parametrize(("activation", "group"), [("relu", "positive"), ("tanh", "signed"), ("linear", "linear")])
@pytest.mark.parametrize("model_type", ["bert", "distilbert", "gpt2"])
def test_the_hidden_units_take_what_their_activation_commutes_with(
    model_type: str, activation: str, group: str
) -> None:
    """Read from the config, under each family's own key of it."""
    key = {"distilbert": "activation", "gpt2": "activation_function"}.get(model_type, "hidden_act")
    config, table = first_of(model_type)
    case = make({**config, key: activation}, table)
    assert case.spec.group("ffn1") == group
    assert first_of(model_type)[0] is config
    assert spec_for(config).group("ffn1") == "permutation"
    assert difference(case, restrict_transform(drawn(case, 1), ["ffn0", "ffn1"])) < case.spec.bound
    assert difference(case, drawn(case, 2)) < case.spec.bound


# Pre-LN families, whose gains can be folded away.
ROTATED = (
    "GPT2Model",
    "gpt2 untied",
    "ViTModel",
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "BeitForImageClassification",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen3ForCausalLM",
    "MegatronBertForSequenceClassification",
    "megatron-bert untied",
    "XLMRobertaXLModel",
    "CLIPTextModelWithProjection",
)


@cache
def folded_case(name: str) -> Case:
    """Return a case whose gains on the stream are all exactly one, under its folded table."""
    case = case_of(name)
    stream = re.compile(r"(text_)?residual=")
    tensors = {
        n: torch.ones_like(tensor) if stream.fullmatch(case.spec.lines[n]) else tensor
        for n, tensor in case.tensors.items()
    }
    case.set(tensors)
    reference = outputs_of(case.model, case.spec, case.batches)
    return replace(case, tensors=tensors, reference=reference, spec=folded_spec(case.spec))


@pytest.mark.parametrize("name", ROTATED)
def test_the_stream_of_a_folded_model_can_be_rotated(name: str, request: pytest.FixtureRequest) -> None:
    """Alone, and together with all else: LayerNorm leaves what fixes the ones vector, RMSNorm every rotation."""
    case = folded_case(name)
    stream = next(axis for axis in kinds_of(case) if axis.endswith("residual"))
    wanted = "orthogonal" if case.spec.family in ("llama", "mistral", "qwen3") else "orthogonal_one"
    assert case.spec.group(stream) == wanted
    t = drawn(case, 7)
    error = difference(case, restrict_transform(t, [stream]))
    assert error < case.spec.bound
    assert difference(case, t) < case.spec.bound
    row = {"case": f"{name}, gains folded", "axis": stream, "group": wanted, "error": f"{error:.0e}"}
    row["family"] = case.config["model_type"]
    request.node.user_properties.append(("symmetry table", row))


@pytest.mark.parametrize("name", ["GPT2Model", "ViTModel", "LlamaForCausalLM"])
def test_a_gain_that_is_not_folded_is_refused_by_name(name: str) -> None:
    """A rotation that met a gain would be another function; it is stopped at the tensor."""
    case = case_of(name)
    folded = folded_spec(case.spec)
    t = restrict_transform(drawn(case, 8, folded), ["residual"])
    with pytest.raises(
        SpecError, match=r"(ln_1|layernorm|input_layernorm|norm)\S*\.weight: .* cannot be rotated\. Fold"
    ):
        apply_transform(folded, t, case.tensors)


@pytest.mark.parametrize(
    "name",
    ["BertModel", "ModernBertForMaskedLM", "RobertaPreLayerNormModel", "MegatronBertForMaskedLM", "CLIPVisionModel"],
)
def test_where_a_gain_lies_in_the_stream_there_is_no_folded_table(name: str) -> None:
    """Post-LN, normed embeddings, and a head whose hidden units are on the stream."""
    with pytest.raises(SpecError, match="cannot be rotated: a norm's gain, or a function of each unit alone"):
        folded_spec(spec_for(CASES[name][0]))


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.claim)
def test_what_is_no_symmetry_changes_the_outputs(wrong: Wrong, request: pytest.FixtureRequest) -> None:
    """The negative control of the groups: an error in a table is never subtle."""
    case = (folded_case if wrong.folded else case_of)(wrong.case)
    spec, t = wrong.element(case)
    error = difference(case, t, spec)
    assert error > BROKEN
    row = {"claim": wrong.claim, "case": wrong.case, "error": f"{error:.2g}"}
    request.node.user_properties.append(("symmetry table", row))


def test_there_are_enough_negative_controls() -> None:
    assert len({wrong.claim for wrong in WRONG}) == len(WRONG) >= 40


def test_the_key_bias_is_idle_in_bert_and_is_not_in_deberta() -> None:
    """Softmax cancels what it adds to all scores of a query; where positions read keys (p2c) it adds to each another."""
    for name, pattern, idle in (
        (BERT, r"key\.bias", True),
        (DEBERTA_V2, r"key_proj\.bias", False),
    ):
        case = case_of(name)
        without = {n: torch.zeros_like(t) if re.search(pattern, n) else t for n, t in case.tensors.items()}
        assert any(not torch.equal(without[n], case.tensors[n]) for n in without)
        case.set(without)
        error = case.off(expected(case, identity_transform(case.spec, case.shapes)))
        assert error < case.spec.bound if idle else error > BROKEN


@pytest.mark.parametrize(("activation", "group"), [("tanh", "sign"), ("gelu", "permutation"), ("relu", "permutation")])
def test_a_convolution_that_is_not_odd_keeps_the_sign_of_the_stream(activation: str, group: str) -> None:
    """DeBERTa v2's stands on the stream itself: only an odd activation lets the stream be turned."""
    config = {**CASES["deberta-v2 own positions"][0], "conv_act": activation}
    case = make(config, CASES["deberta-v2 own positions"][1])
    assert case.spec.group("residual") == group
    assert difference(case, drawn(case, 1)) < case.spec.bound
    turned = replace(case.spec, groups={**case.spec.groups, "residual": "sign"})
    error = difference(case, restrict_transform(drawn(case, 2, turned), ["residual"]), turned)
    assert error < case.spec.bound if group == "sign" else error > BROKEN
