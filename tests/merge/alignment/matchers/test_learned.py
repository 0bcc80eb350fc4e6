"""Learned alignment: the loss half way falls, and both models stay what they were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import canonical_tensors, family_case, inputs, written_name
from families_more import CASES as MORE
from random_transforms import random_transform
from safetensors.torch import load_file
from tiny import NLI, SPECIAL, bert_config, save_checkpoint, write_text

from merge.alignment.evidence.proof import prove
from merge.alignment.masking import IGNORED
from merge.alignment.matchers import learned
from merge.alignment.matchers.learned import conditioned, free_axes, match_learned
from merge.alignment.matchers.learned_loss import Loss, is_causal, loss_of, split
from merge.alignment.midpoint import EndpointOutputs, score
from merge.alignment.pair import Alignment, Pair, Settings, TextFacts
from merge.alignment.reading import read_alignment_text
from merge.alignment.settings import AlignEntry
from merge.alignment.solvers.charts import CHARTS, actions, maps_at, moved, origin
from merge.checkpoints.inputs import Batch, load_tokenizer
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.structure import structure_of
from merge.errors import AlignmentError, CalibrationError, MismatchError
from merge.recipe.recipe import make_recipe
from merge.run.run import run
from merge.symmetry.architectures import spec_for
from merge.symmetry.canonical import fold_norms
from merge.symmetry.groups import GROUPS
from merge.symmetry.permutation import identity
from merge.symmetry.transform import (
    Transform,
    apply_transform,
    axis_sizes,
    folded_spec,
    restrict_transform,
)
from merge.symmetry.transform_files import load_transform

HEADS = frozenset({"heads"})
CLASSIFIER = "BertForSequenceClassification"
# One layer has every kind of axis.
BERT = family_case("bert", "ForSequenceClassification", num_hidden_layers=1)
RELU = BERT | {"hidden_act": "relu"}


def make(config: Mapping[str, Any], folded: bool = False, other: int | None = None) -> Pair:
    """Return a random model and itself, or another random one, and two batches of 24 texts."""
    structure, spec = structure_of(config), spec_for(config)
    ends = [canonical_tensors(config, seed, torch.float32) for seed in (0, other or 0)]
    if folded:
        a, b = (fold_norms(spec, config, tensors) for tensors in ends)
        config, ends = a.config, [dict(a.tensors), dict(b.tensors)]
        spec, structure = folded_spec(spec_for(a.config)), structure_of(a.config)
    drawn = [batch for seed in range(3) for batch in inputs(config, seed)]
    text = tuple({name: torch.cat([batch[name] for batch in drawn[k::2]]) for name in drawn[0]} for k in range(2))
    return Pair(spec, *ends, config, lambda name: written_name(structure, name), text, settings=Settings(steps=40))


def planted(pair: Pair, seed: int = 1) -> Pair:
    """Return the pair with b moved by a random element on every axis that is learned: maps alone, no permutation."""
    drawn = random_transform(pair.spec, pair.shapes, torch.Generator().manual_seed(seed))
    axes = free_axes(pair, frozenset(pair.kinds()))
    element = Transform(identity(pair.spec, pair.shapes), restrict_transform(drawn, axes).maps)
    assert element.maps
    return replace(pair, b=apply_transform(pair.spec, element, pair.b))


def from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything be learned from the identity, so that what is gained is gained by gradients."""

    def still(pair: Pair, _ends: Any = None) -> Any:
        return lambda kinds: Alignment(identity(pair.spec, pair.shapes), tuple(sorted(kinds)), ())

    monkeypatch.setattr(learned, "best_start", still)


def exact(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def proof(pair: Pair, transform: Transform, end: str = "b") -> float:
    """Return how far an end moved in float64 is from itself."""
    own = replace(pair, b=exact(getattr(pair, end)))
    return prove(own, apply_transform(pair.spec, transform, own.b), transform, pair.batches).error


LLAMA = {**MORE["LlamaForSequenceClassification"], "num_hidden_layers": 1}
GPT2 = {**MORE["GPT2ForSequenceClassification"], "n_layer": 1}


@pytest.mark.parametrize(
    ("config", "folded", "groups"),
    [
        pytest.param(BERT, False, {"linear"}, marks=pytest.mark.slow),
        (RELU, False, {"linear", "positive"}),
        pytest.param(GPT2, True, {"linear", "orthogonal_one"}, marks=pytest.mark.slow),
        pytest.param(LLAMA, True, {"linear", "orthogonal", "real", "rotary"}, marks=pytest.mark.slow),
    ],
    ids=["bert", "bert with relu", "folded gpt2", "folded llama"],
)
def test_a_planted_element_of_the_group_is_learned_back(
    config: Mapping[str, Any], folded: bool, groups: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The models are one in two bases, so the loss half way can fall to nothing; matching starts far from it."""
    from_nothing(monkeypatch)
    monkeypatch.setattr(learned, "LEARNING_RATE", 0.02)  # what is planted lies further off than what matching leaves
    pair = planted(make(config, folded=folded))
    axes = free_axes(pair, frozenset(pair.kinds()))
    assert {pair.spec.group(axis) for axis in axes} == groups
    found = match_learned(pair)(frozenset(pair.kinds()))
    assert set(found.maps) == set(axes)
    assert found.permutation.is_identity
    (naive, after), _ = score([identity(pair.spec, pair.shapes), found], pair)
    assert naive > 0.01
    assert after < naive / 2
    assert proof(pair, found.transform) <= pair.spec.bound


@pytest.mark.slow
def test_b_does_not_change_and_a_does_not_either_when_both_move(monkeypatch: pytest.MonkeyPatch) -> None:
    from_nothing(monkeypatch)
    pair = planted(make(BERT | {"num_hidden_layers": 2}))  # every layer's axes are learned
    pair = replace(pair, settings=replace(pair.settings, both=True, steps=20))
    found = match_learned(pair)(HEADS)
    reference = Transform(identity(pair.spec, pair.shapes), found.reference_maps)
    assert set(found.reference_maps) == set(found.maps) == {"qk0", "v0", "qk1", "v1"}
    assert not any(torch.equal(found.maps[axis], found.reference_maps[axis]) for axis in found.maps)
    assert proof(pair, found.transform) < 1e-9
    assert proof(pair, reference, "a") < 1e-9
    assert -found.objective[-1] == pytest.approx(held_out_loss(pair, found), rel=1e-4)


def test_the_proof_fails_when_a_map_reaches_one_tensor_of_two() -> None:
    """The negative control of the proofs above: values in another basis than what reads them."""
    pair = planted(make(BERT))
    drawn = random_transform(pair.spec, pair.shapes, torch.Generator().manual_seed(1))
    element = Transform(identity(pair.spec, pair.shapes), {"v0": drawn.maps["v0"]})
    own = replace(pair, b=exact(pair.b))
    moved_b = apply_transform(pair.spec, element, own.b)
    name = next(name for name in pair.b if name.endswith("0.attention.self.value.weight"))
    assert prove(own, moved_b, element, pair.batches).error < 1e-9
    with pytest.raises(AlignmentError, match="is not the model it was"):
        prove(own, moved_b | {name: own.b[name]}, element, pair.batches)


def held_out_loss(pair: Pair, found: Alignment, lam: float = 0.5) -> float:
    """Return the divergence at lam on the held-out texts, from whole models built by hand."""
    reference = Transform(identity(pair.spec, pair.shapes), found.reference_maps)
    ends = apply_transform(pair.spec, reference, pair.a), apply_transform(pair.spec, found.transform, pair.b)
    middle = {name: (1 - lam) * ends[0][name] + lam * ends[1][name] for name in pair.a}
    models = [pair.model(tensors) for tensors in (pair.a, pair.b, middle)]
    total, count, seen = 0.0, 0, 0
    for batch in pair.batches:
        texts = len(batch["input_ids"])
        rows = [k for k in range(texts) if (seen + k) % 4 == 3]
        seen += texts
        with torch.inference_mode():
            said = [model(**{n: t[rows] for n, t in batch.items()}).logits.double().softmax(-1) for model in models]
        ensemble = (1 - lam) * said[0] + lam * said[1]
        total += float((ensemble * (ensemble.log() - said[2].log())).sum())
        count += len(rows)
    return total / count


@pytest.mark.slow
def test_the_objective_is_minus_the_held_out_loss_and_never_decreases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the start, then of each better step: by whole models in the open, not by the loop that found them."""
    from_nothing(monkeypatch)
    pair = planted(make(BERT))
    found = match_learned(pair)(HEADS)
    start = Alignment(identity(pair.spec, pair.shapes), (), ())
    assert -found.objective[0] == pytest.approx(held_out_loss(pair, start), rel=1e-4)
    assert -found.objective[-1] == pytest.approx(held_out_loss(pair, found), rel=1e-4)
    assert len(found.objective) > 2
    assert all(later > earlier for earlier, later in pairwise(found.objective))


@pytest.mark.slow
def test_along_the_line_the_mean_of_three_losses_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whole models in the open; the ensemble at lam is the target there. The control: half way alone is another objective."""
    from_nothing(monkeypatch)
    pair = planted(make(BERT))
    found = {
        line: match_learned(replace(pair, settings=replace(pair.settings, line=line, steps=16)))(HEADS)
        for line in (True, False)
    }
    along = {line: sum(held_out_loss(pair, each, lam) for lam in (0.25, 0.5, 0.75)) / 3 for line, each in found.items()}
    assert -found[True].objective[-1] == pytest.approx(along[True], rel=1e-4)
    assert found[True].objective[-1] > found[True].objective[0]
    assert -found[False].objective[-1] != pytest.approx(along[False], rel=1e-2)
    assert found[True].maps.keys() == found[False].maps.keys()
    assert not all(torch.equal(found[True].maps[axis], found[False].maps[axis]) for axis in found[True].maps)


@pytest.mark.parametrize("rate", [0.0, 30.0])
def test_the_start_stays_where_no_step_is_better(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: steps of no length gain nothing, and steps far too long are not kept."""
    from_nothing(monkeypatch)
    monkeypatch.setattr(learned, "LEARNING_RATE", rate)
    pair = planted(make(BERT))
    found = match_learned(replace(pair, settings=Settings(steps=4)))(HEADS)
    assert found.maps == {}
    assert len(found.objective) == 1


@pytest.mark.slow
def test_what_is_learned_begins_where_matching_ends() -> None:
    """Permutations are those of the start; their units would not find together by gradients."""
    pair = make(BERT, other=5)
    pair = replace(pair, settings=Settings(steps=8))
    kinds = frozenset(pair.kinds())
    begun = learned.best_start(pair)(kinds)
    found = match_learned(pair)(kinds)
    assert not begun.permutation.is_identity
    assert all(torch.equal(found.permutation.indices[a], begun.permutation.indices[a]) for a in pair.movable)
    assert -found.objective[0] == pytest.approx(held_out_loss(pair, begun), rel=1e-4)
    assert found.objective[-1] > found.objective[0]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    pair = make(BERT, other=5)
    maps = []
    for seed in (0, 0, 1):
        pair = replace(pair, settings=Settings(steps=8, seed=seed))
        maps.append(match_learned(pair)(HEADS).maps)
    assert maps[0]
    assert all(maps[0][axis].numpy().tobytes() == maps[1][axis].numpy().tobytes() for axis in maps[0])
    assert not all(torch.equal(maps[0][axis], maps[2][axis]) for axis in maps[0])


@pytest.mark.slow
def test_only_the_kinds_asked_for_are_learned_and_kinds_without_maps_are_matched() -> None:
    """Of a pooler's units only places and signs are free: there is nothing to take a gradient by."""
    pair = replace(make(BERT, other=5), settings=Settings(steps=4))
    assert free_axes(pair, frozenset({"pooler", "ffn", "residual"})) == {}
    found, begun = match_learned(pair)(frozenset({"pooler"})), learned.best_start(pair)(frozenset({"pooler"}))
    assert found.maps.keys() == begun.maps.keys() == {"pooler"}
    assert torch.equal(found.maps["pooler"].abs(), torch.ones(24, dtype=torch.float64))
    assert torch.equal(found.maps["pooler"], begun.maps["pooler"])
    assert found.objective == begun.objective
    assert {pair.spec.kind(axis) for axis in free_axes(pair, frozenset(pair.kinds()))} == {"heads"}


@pytest.mark.slow
def test_what_is_learned_from_is_nearest_half_way_of_all_that_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start on its own, and its loss half way by a model of averaged weights; which is best is not the first."""
    pair = replace(make(BERT, other=5), settings=Settings(steps=1))
    alone = {}
    for by in learned.STARTS:
        monkeypatch.setattr(learned, "STARTS", (by,))
        alone[by] = learned.best_start(pair)(HEADS)
    monkeypatch.undo()
    losses = {by: held_out_loss(pair, begun) for by, begun in alone.items()}
    best = min(losses, key=lambda by: losses[by])
    assert max(losses.values()) > losses[best] + 1e-4
    for order in (learned.STARTS, learned.STARTS[::-1]):
        monkeypatch.setattr(learned, "STARTS", order)
        assert held_out_loss(pair, learned.best_start(pair)(HEADS)) == pytest.approx(losses[best], rel=1e-6)


# ---- maps ----


@pytest.mark.parametrize("group", CHARTS)
def test_coordinates_stay_in_their_group_and_zero_is_the_identity(group: str) -> None:
    """G^-T by numpy's inverse; every value is an element, so b is b wherever the descent goes."""
    spec = replace(spec_for(bert_config(CLASSIFIER)), groups={"axis": group})
    for shape in ((6,), (3, 6)):
        (still,) = origin(spec, {"axis7": shape})
        out, into = maps_at((still,))["axis7"]
        full = out.ndim == len(shape) + 1
        one = np.broadcast_to(np.eye(6), out.shape) if full else np.ones(shape)
        assert np.array_equal(out.detach().numpy(), one)
        drawn = torch.randn(still.values.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        out, into = maps_at((replace(still, values=drawn),))["axis7"]
        assert GROUPS[group].contains(out, shape)
        expected = np.swapaxes(np.linalg.inv(out.numpy()), -1, -2) if full else 1 / out.numpy()
        assert into.numpy() == pytest.approx(expected, rel=1e-9, abs=1e-10)
        assert float((out - torch.as_tensor(one.copy())).abs().max()) > 0.1


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "xlnet", "modernbert", "deberta"])
def test_maps_act_as_the_transform_does(model_type: str) -> None:
    """Fused, transposed and grouped tensors, heads as an axis of their own: against `apply_transform`, in float64."""
    table = {"bert": BERT}
    config = table.get(model_type) or next(c for c in MORE.values() if c["model_type"] == model_type)
    spec, tensors = spec_for(config), canonical_tensors(config, 0)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    axes = {axis: shape for axis, shape in axis_sizes(spec, shapes).items() if spec.group(axis) in CHARTS}
    parts = origin(spec, axes)
    generator = torch.Generator().manual_seed(4)
    parts = tuple(
        replace(part, values=0.3 * torch.randn(part.values.shape, generator=generator, dtype=torch.float64))
        for part in parts
    )
    maps = maps_at(parts)
    expected = apply_transform(
        spec, Transform(identity(spec, shapes), {axis: m for axis, (m, _) in maps.items()}), tensors
    )
    acting = actions(spec, shapes, axes)
    assert acting
    for name, tensor in tensors.items():
        found = moved(tensor, acting[name], maps) if name in acting else tensor
        assert torch.allclose(found, expected[name], rtol=1e-10, atol=1e-12), name
    assert sum(not torch.equal(tensors[name], expected[name]) for name in tensors) == len(acting)


def test_a_map_that_loses_digits_is_told() -> None:
    pair = make(BERT)
    good = torch.eye(6, dtype=torch.float64).expand(4, 6, 6).clone()
    bad = good.clone()
    bad[2, 0, 0] = 1e-4
    assert conditioned([{"qk0": good}, {}], pair)
    assert not conditioned([{"qk0": good}, {"qk0": bad}], pair)


# ---- losses ----


def mean_loss(pair: Pair, loss: Loss, tensors: Mapping[str, torch.Tensor], rows: int = 4) -> tuple[float, Any]:
    batch = loss.make_batch(0, torch.arange(rows), torch.Generator().manual_seed(3))
    with torch.no_grad():
        total, count = loss.value(pair.model(tensors)(**batch.inputs), batch, 0.5)
    return float(total) / count, batch


def first_texts(pair: Pair) -> Batch:
    return {name: tensor[:4] for name, tensor in pair.batches[0].items()}


def of(pair: Pair) -> Loss:
    return loss_of(pair, Transform(identity(pair.spec, pair.shapes), {}), EndpointOutputs(pair))


def test_the_loss_of_labels_is_the_models_own() -> None:
    """Against the loss that transformers computes itself."""
    pair = make(BERT)
    labels = tuple(torch.arange(len(batch["input_ids"])) % 3 for batch in pair.batches)
    pair = replace(pair, text=TextFacts(labels))
    found, _ = mean_loss(pair, of(pair), pair.a)
    with torch.no_grad():
        expected = float(pair.model(pair.a)(**first_texts(pair), labels=labels[0][:4]).loss)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_labels_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are what a says; half way to itself in another basis it says something else, until that is learned."""
    from_nothing(monkeypatch)
    pair = planted(make(BERT))
    with torch.no_grad():
        labels = tuple(pair.model(pair.a)(**batch).logits.argmax(-1) for batch in pair.batches)
    found = match_learned(replace(pair, text=TextFacts(labels)))(HEADS)
    assert found.objective[-1] > found.objective[0] + 0.01


def test_the_loss_of_the_next_token_is_the_models_own() -> None:
    config = next(c for c in MORE.values() if c["architectures"] == ["GPT2LMHeadModel"])
    pair = make(config)
    loss = of(pair)
    found, _ = mean_loss(pair, loss, pair.a)
    batch = first_texts(pair)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    with torch.no_grad():
        expected = float(pair.model(pair.a)(**batch, labels=labels).loss)
    assert loss.name == "next tokens"
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_language_model_that_sees_what_follows_is_not_asked_for_the_next_token() -> None:
    """BertLMHeadModel is a decoder only if its config says so; XLNet's head never is."""
    batch = {"input_ids": torch.tensor([[3, 4, 5, 6]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    for decoder in (True, False):
        pair = make(family_case("bert", "LMHeadModel", is_decoder=decoder))
        assert is_causal(pair.model(pair.a), batch) is decoder
        assert of(pair).name == ("next tokens" if decoder else "outputs of the endpoints")


def test_the_loss_of_masked_words_is_the_models_own() -> None:
    pair = replace(make(family_case("bert", "ForMaskedLM")), text=TextFacts(mask_token=3, special_tokens=(0, 1, 2)))
    found, batch = mean_loss(pair, of(pair), pair.a)
    with torch.no_grad():
        expected = float(pair.model(pair.a)(**batch.inputs, labels=batch.target).loss)
    assert found == pytest.approx(expected, rel=1e-5)


def test_one_text_in_four_is_held_out_and_no_text_is_on_both_sides() -> None:
    batches: list[Batch] = [{"input_ids": torch.zeros(n, 3)} for n in (5, 1, 2, 8)]
    learned_from, held = split(batches)
    assert [rows.tolist() for rows in held] == [[3], [], [1], [3, 7]]
    for batch, left, out in zip(batches, learned_from, held, strict=True):
        assert sorted([*left.tolist(), *out.tolist()]) == list(range(len(batch["input_ids"])))


def test_faults_are_told_in_one_line() -> None:
    pair = make(BERT)
    with pytest.raises(AlignmentError, match="needs calibration text and a tokenizer"):
        match_learned(replace(pair, batches=()))
    short = {name: tensor[:3] for name, tensor in pair.batches[0].items()}
    with pytest.raises(AlignmentError, match="one text in 4; found 3 texts"):
        match_learned(replace(pair, batches=(short,)))
    with pytest.raises(AlignmentError, match="every text needs one label"):
        of(replace(pair, text=TextFacts(tuple(torch.zeros(1, dtype=torch.int64) for _ in pair.batches))))
    large = replace(pair, text=TextFacts(tuple(torch.full((24,), 7) for _ in pair.batches)))
    with pytest.raises(AlignmentError, match="has 3 classes, and a text's label is class 7"):
        mean_loss(large, of(large), pair.a)
    words = make(family_case("bert", "ForMaskedLM"))
    with pytest.raises(AlignmentError, match="no mask token is known"):
        of(words)
    with pytest.raises(AlignmentError, match="labels of texts are learned by sequence classifiers; this is a BertForM"):
        of(replace(words, text=TextFacts(tuple(torch.zeros(24, dtype=torch.int64) for _ in words.batches))))


# ---- the whole run ----


def labelled(path: Path, rows: int = 24) -> Path:
    """Write texts of several lengths, so that batches are not in the order of the file, with a class for each."""
    texts = write_text(path.with_suffix(".txt"), rows).read_text(encoding="utf-8").splitlines()
    names = ("contradiction", "Entailment", "neutral")
    lines = [json.dumps({"text": text, "label": names[len(text) % 3]}) for text in texts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_each_text_keeps_its_label_by_name(tmp_path: Path) -> None:
    """The class is a function of the text: read back from the tokens of every batch, it is the label there."""
    reference = open_checkpoint(str(save_checkpoint(tmp_path / "a")))
    entry = AlignEntry(by="learned", text=str(labelled(tmp_path / "t.jsonl")), label_column="label")
    material = read_alignment_text(entry, 0, reference)
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text(encoding="utf-8").splitlines()]
    tokenizer = load_tokenizer(reference.folder)
    by_tokens = {tuple(tokenizer(row["text"])["input_ids"]): row["label"].lower() for row in rows}
    seen = 0
    for batch, labels in zip(material.batches, material.labels, strict=True):
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], labels.tolist(), strict=True):
            assert NLI[label] == by_tokens[tuple(ids[mask.bool()].tolist())]
            seen += 1
    assert seen == 24
    assert "labels label" in str(material.source)


def test_a_label_that_is_no_class_and_a_column_without_a_text_are_errors(tmp_path: Path) -> None:
    reference = open_checkpoint(str(save_checkpoint(tmp_path / "a", bert_config(labels=("yes", "no", "maybe")))))
    text = str(labelled(tmp_path / "t.jsonl"))
    with pytest.raises(MismatchError, match="are no classes of"):
        read_alignment_text(AlignEntry(by="learned", text=text, label_column="label"), 0, reference)
    with pytest.raises(ValueError, match="label_column belongs to by: learned"):
        AlignEntry(by="activations", text=text, label_column="label")
    with pytest.raises(CalibrationError, match="no text is given. Add text"):
        read_alignment_text(AlignEntry(by="learned", label_column="label"), 0, reference)


def test_a_masked_language_model_is_given_its_tokenizers_mask(tmp_path: Path) -> None:
    reference = open_checkpoint(str(save_checkpoint(tmp_path / "a", bert_config("BertForMaskedLM"))))
    material = read_alignment_text(AlignEntry(by="learned", text=str(write_text(tmp_path / "t.txt"))), 0, reference)
    assert material.mask_token == SPECIAL.index("[MASK]")
    assert material.special_tokens == tuple(range(len(SPECIAL)))


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True])
def test_a_run_learns_from_labels_and_proves_both_ends(both: bool, tmp_path: Path) -> None:
    """The merge is the mean of a and of b as the written transform moves it; with both, a is not where it was."""
    a, b = save_checkpoint(tmp_path / "a", seed=0), save_checkpoint(tmp_path / "b", seed=1)
    text = labelled(tmp_path / "t.jsonl")
    align = {"by": "learned", "text": str(text), "label_column": "label", "axes": ["heads"], "steps": 6, "both": both}
    run(make_recipe({"models": [str(a), str(b)], "align": align, "output": str(tmp_path / "out")}))
    manifest = json.loads((tmp_path / "out" / "merge.json").read_text(encoding="utf-8"))
    (said,) = manifest["alignment"]
    assert said["by"] == "learned"
    assert said["maps"] == ["qk0", "qk1", "v0", "v1"]
    assert said["proof"]["error"] < 1e-9
    assert said["objective"][-1] > said["objective"][0]
    merged, plain = (load_file(f / "model.safetensors") for f in (tmp_path / "out", a))
    name = "bert.encoder.layer.0.attention.self.value.weight"
    spec, opened = spec_for(open_checkpoint(str(a)).config), open_checkpoint(str(b))
    transform = load_transform(spec, tmp_path / "out" / "transform.safetensors")
    moved_b = apply_transform(spec, transform, {name: opened.tensor(name)})[name]
    rebuilt = torch.allclose(merged[name], (plain[name] + moved_b) / 2, atol=1e-6)
    assert rebuilt is not both


def test_choosing_scores_an_alignment_with_both_ends_moved() -> None:
    """A pair in one basis, both ends moved alike, is still a pair in one basis; with one end alone it is not."""
    pair = make(BERT)
    drawn = random_transform(pair.spec, pair.shapes, torch.Generator().manual_seed(1))
    maps = restrict_transform(drawn, {"qk0", "v1"}).maps
    still = identity(pair.spec, pair.shapes)
    values, _ = score([Alignment(still, ("heads",), (), maps, maps), Alignment(still, ("heads",), (), maps)], pair)
    assert values[0] == pytest.approx(0.0, abs=1e-6)
    assert values[1] > 1e-3
