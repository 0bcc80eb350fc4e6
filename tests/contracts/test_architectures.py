"""The battery every architecture table faces, with every task head: exact on all axes, wrong as soon as one is fixed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
import transformers
from architecture_case import ALL_CASES, CASES, FIRST, STANDING, TABLES, Case, make, outputs_of, standing_case
from families import CLASSIFIERS, FAMILIES, UNLIKE, canonical_tensors, family_case, written_name
from quick import quick_on

from merge.alignment.settings import AlignEntry
from merge.checkpoints.hooks import watching
from merge.checkpoints.model_set import ModelSet
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import build, quiet
from merge.errors import SpecError
from merge.run.plan.heads import plan_heads
from merge.run.rebase import rebase
from merge.symmetry.architectures import ARCHITECTURES, spec_for
from merge.symmetry.permutation import apply, apply_axes, inverse, random, restrict
from merge.symmetry.spec import parse
from merge.symmetry.transform import Transform
from merge.symmetry.transform_files import load_transform, save_transform

# What breaks moves the outputs by tenths of a standard deviation; nothing lies between this and a table's bound.
BROKEN = 1e-3


@pytest.fixture(params=ALL_CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return standing_case(request.param) if request.param in STANDING else make(*CASES[request.param])


@pytest.fixture(params=ARCHITECTURES, scope="module")
def family(request: pytest.FixtureRequest) -> Case:
    return standing_case(FIRST[request.param])


def test_every_registered_family_is_in_this_battery() -> None:
    """A family cannot be listed without being tested."""
    assert {config["model_type"] for config, _ in CASES.values()} == set(ARCHITECTURES)
    assert len(ARCHITECTURES) >= 12
    assert len(CASES) == sum(len(table.CASES) for table in TABLES)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_head_that_transformers_has_for_the_family_is_in_this_battery(model_type: str) -> None:
    """The list of heads is transformers' own: every model class beside the family's config."""
    place = transformers.AutoConfig.for_model(model_type).__class__.__module__
    module = import_module(place.replace(".configuration_", ".modeling_"))
    models = [name for name in module.__all__ if issubclass(getattr(module, name), transformers.PreTrainedModel)]
    heads = {name for name in models if not name.endswith("PreTrainedModel")}
    assert {config["architectures"][0] for config, _ in CASES.values() if config["model_type"] == model_type} == heads
    assert len(heads) >= 5


# What runs a model hundreds of times is quick on families that differ in kind.
ON_UNLIKE = pytest.mark.parametrize("case", quick_on([FIRST[family] for family in UNLIKE], CASES), indirect=True)


@pytest.mark.parametrize("case", quick_on([FIRST[family] for family in UNLIKE], STANDING), indirect=True)
def test_a_random_element_of_each_axis_alone_keeps_the_outputs(case: Case) -> None:
    """All of them at once do too, of every case: test_symmetries.py, and the last line of the next test.

    The cases left out have no line of a kind of their own. Axes that are in no line but those that all heads of a family
    share move in its first case alone.
    """
    p = case.random(9)
    own = [line for name, line in case.spec.lines.items() if case.elsewhere.get(name) != line]
    axes = [axis for axis in p.indices if not own or any(re.search(rf"\b{axis}\b", line) for line in own)]
    assert axes
    for axis in axes:
        alone = restrict(p, [axis])
        assert not alone.is_identity
        assert case.difference(alone) < case.spec.bound


@ON_UNLIKE
def test_fixing_any_one_axis_in_one_line_breaks_the_outputs(case: Case) -> None:
    """The negative control of the whole table: no line and no axis of it is idle, but for those declared with a reason.

    Lines that all the heads of a family share are broken in its first case alone.
    """
    p = case.random(5)
    moved, expected = apply(case.spec, p, case.tensors), case.expected(p)
    case.set(moved)
    idle, declared = set(), set()
    for name, tensor in case.tensors.items():
        if case.elsewhere.get(name) == case.spec.lines[name]:
            continue
        for line in fixed_once(case.spec.lines[name]):
            case.set(apply(replace(case.spec, lines={name: line}), p, {name: tensor}))
            error = case.off(expected, batches=1)
            assert error < case.spec.bound or error > BROKEN
            if error < BROKEN:
                idle.add((name, line))
            if any(re.search(pattern, f"{name} {line}") for pattern in case.inert):
                declared.add((name, line))
        case.set({name: moved[name]})
    assert case.off(expected) < case.spec.bound < BROKEN
    assert idle == declared


def fixed_once(line: str) -> Iterator[str]:
    """Yield the line with one of its axes fixed, for each that may move; of split axes also the order inside alone."""
    items: list[str] = []
    for word in line.split():
        inside = items and len(re.findall(r"[\[({]", items[-1])) > len(re.findall(r"[\])}]", items[-1]))
        items[-1:] = [f"{items[-1]} {word}"] if inside else [*items[-1:], word]
    for place, item in enumerate(items):
        fixed = [] if item == "-" else ["- -" if item.startswith("{") else "-"]
        inner = re.finditer(r"(?<![-\w])\w+['=]?(?=\s*[|\])}])", item)
        for mutant in [*fixed, *(f"{item[: name.start()]}-{item[name.end() :]}" for name in inner)]:
            yield " ".join([*items[:place], mutant, *items[place + 1 :]])


def test_the_mutants_of_a_line_fix_every_item_and_every_order_inside_one() -> None:
    assert list(fixed_once("- residual'")) == ["- -"]
    assert list(fixed_once("residual (heads0 v0)'")) == ["- (heads0 v0)'", "residual -", "residual (heads0 -)'"]
    assert list(fixed_once("[a | (b c')] -")) == ["- -", "[- | (b c')] -", "[a | (b -)] -"]
    assert list(fixed_once("{heads0 qk0}")) == ["- -", "{heads0 -}"]


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_mixing_rows_of_different_heads_breaks_the_outputs(family: Case) -> None:
    """Why heads are split axes: a free permutation of the rows is what tools that ignore heads apply."""
    split = re.compile(r"\(heads\d* (qk0'?)\)")
    assert sum(bool(split.search(line)) for line in family.spec.lines.values()) >= 3
    lines = {name: split.sub(r"\1", line) for name, line in family.spec.lines.items()}
    free = replace(family.spec, lines=lines)
    p = restrict(random(free, family.shapes, torch.Generator().manual_seed(0)), ["qk0"])
    assert family.difference(p, free) > BROKEN


def test_the_heads_of_mpnet_share_one_order_over_all_layers() -> None:
    """Its table of relative positions has one column a head for all of them, so an order for each layer breaks it."""
    mpnet = make(*CASES["MPNetModel"])
    lines = {
        name: re.sub(r"\(heads ", f"(heads{layer[1]} ", line) if (layer := re.search(r"layer\.(\d)", name)) else line
        for name, line in mpnet.spec.lines.items()
    }
    own = replace(
        mpnet.spec,
        lines=lines | {"mpnet.encoder.relative_attention_bias.weight": "- -"},
        sizes={"heads0": 4, "heads1": 4},
    )
    p = random(own, mpnet.shapes, torch.Generator().manual_seed(0))
    assert mpnet.difference(restrict(p, ["heads1"]), own) > BROKEN
    assert mpnet.difference(restrict(p, ["qk1", "v1"]), own) < own.bound


def test_round_trip_gives_every_tensor_back_bit_for_bit(case: Case) -> None:
    p = case.random(6)
    moved = apply(case.spec, p, case.tensors)
    back = apply(case.spec, inverse(p), moved)
    assert all(torch.equal(back[name], tensor) for name, tensor in case.tensors.items())
    assert not all(torch.equal(moved[name], tensor) for name, tensor in case.tensors.items())


def test_every_tap_carries_its_axis(case: Case) -> None:
    """Re-basing moves the activations at every tap exactly as the axis moves: what activation matching relies on."""
    p = case.random(7)
    sites = {site: axis for site, axis in case.spec.sites().items() if p.indices.keys() >= set(axis.axis_names())}
    seen = []
    for version in (case.tensors, apply(case.spec, p, case.tensors)):
        case.set(version)
        found: dict[str, torch.Tensor] = {}
        with watching(case.model, sites, found.__setitem__, first=True):
            outputs_of(case.model, case.spec, case.batches[:1])
        seen.append(found)
    assert sites
    for site, axis in sites.items():
        before, after = (found[site] for found in seen)
        moved = apply_axes((*parse("- " * (before.ndim - 1)), axis), p, before)
        assert float((moved - after).abs().max() / after.std()) < case.spec.bound
        assert float((before - after).abs().max() / after.std()) > BROKEN


def test_every_axis_that_matching_may_move_has_a_tap(case: Case) -> None:
    """All but the labels, whose order is given by names, and the heads of XLNet, whose attention is no module that shows them."""
    axes = set(case.spec.fit(case.shapes))
    tapped = {name for axis in case.spec.sites().values() for name in axis.axis_names()}
    unseen = {axis for axis in axes if case.spec.family == "xlnet" and case.spec.kind(axis) == "heads"}
    assert axes - tapped == (case.spec.named & axes) | unseen
    assert len(axes & tapped) >= 3


def test_a_saved_model_is_opened_under_the_names_of_its_table(case: Case, tmp_path: Path) -> None:
    """Names and shapes on disk, ties and the config complete with defaults lead to the same table; so does the file of p."""
    p = case.random(8)
    moved = apply(case.spec, p, case.tensors)
    case.set(moved)
    with quiet():
        case.model.save_pretrained(tmp_path)
    opened = open_checkpoint(str(tmp_path))
    found = spec_for(opened.config)
    assert found == case.spec
    assert found.fit(opened.shapes) == case.spec.fit(case.shapes)
    save_transform(found, Transform(p, {}), tmp_path / "permutation.safetensors")
    loaded = load_transform(found, tmp_path / "permutation.safetensors").permutation
    again = apply(found, inverse(loaded), opened.state_dict())
    assert again.keys() == case.tensors.keys()
    # A model may keep some tensors in float32 whatever it is asked for.
    assert all(torch.equal(again[name], tensor.to(again[name].dtype)) for name, tensor in case.tensors.items())


def test_every_classification_head_names_the_axis_of_its_labels(case: Case) -> None:
    """Labels are reordered by name on that axis: in the head's weights and in the logits, and in no other head."""
    labels = [name for name in case.tensors if "labels" in case.spec.lines[name]]
    outputs = [name for name, line in case.spec.outputs.items() if line.endswith("labels")]
    if "Classification" in case.config["architectures"][0]:
        assert labels
        assert "logits" in outputs
        assert case.spec.fit(case.shapes)["labels"] == (3,)
        assert case.spec.named == {"labels"}
    else:
        assert not labels + outputs


@pytest.mark.parametrize("end", CLASSIFIERS)
@pytest.mark.parametrize("model_type", quick_on(UNLIKE, FAMILIES))
def test_labels_in_another_order_are_matched_by_name_in_every_family(model_type: str, end: str, tmp_path: Path) -> None:
    """The other model is the first with its classes turned, in its weights as in id2label: matched, it is the first."""
    config, turn = family_case(model_type, end), torch.tensor([2, 0, 1])
    names = [config["id2label"][str(i)] for i in turn.tolist()]
    turned = {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
    tensors = canonical_tensors(config, 0)
    last = "classifier.out_proj" if "classifier.out_proj.weight" in tensors else "classifier"
    other = tensors | {name: tensors[name][turn] for name in (f"{last}.weight", f"{last}.bias")}
    for place, made, weights in (("a", config, tensors), ("b", config | turned, other)):
        structure = structure_of(made)
        with quiet():
            build(made, {written_name(structure, n): t for n, t in weights.items()}).save_pretrained(tmp_path / place)
    models = [open_checkpoint(str(tmp_path / place)) for place in "ab"]
    bases = rebase(AlignEntry(), plan_heads(None, ModelSet(tuple(models))))
    assert bases.spec is not None
    assert bases.labels[0] is None
    assert bases.labels[1] is not None
    matched = apply(bases.spec, bases.labels[1], models[1].state_dict())
    assert all(torch.equal(matched[name], tensor) for name, tensor in tensors.items())
    assert not torch.equal(models[1].tensor(f"{last}.weight"), tensors[f"{last}.weight"])


def test_a_head_without_a_table_is_refused_by_name(family: Case) -> None:
    config = dict(family.config)
    right = config["architectures"][0]
    wrong = f"{right}s"
    with pytest.raises(SpecError, match=rf"no task head '{wrong}'\. Did you mean '{right}'\? Known: "):
        spec_for(config | {"architectures": [wrong]})
    with pytest.raises(SpecError, match=r"has no task head '\?'"):
        spec_for(config | {"architectures": None})


def test_a_family_without_a_table_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match="no permutation table for model type 'bertt'. Did you mean 'bert'"):
        spec_for({"model_type": "bertt"})


def test_tensors_beyond_the_table_are_refused_by_name() -> None:
    """Cross-attention is no part of an encoder: a decoder that has it is not taken for one that has none."""
    config = family_case("bert", "LMHeadModel", add_cross_attention=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in canonical_tensors(config, 0).items()}
    with pytest.raises(
        SpecError, match=r"bert.encoder.layer.0.crossattention.self.query.weight \(24, 24\) has no line"
    ):
        spec_for(config).fit(shapes)
