"""What becomes of task heads: averaged class by class, the reference's, none, or each model's own around one encoder."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from quick import quick_on
from safetensors.torch import load_file
from tiny import WORDS, bert_config, random_tensors, save_checkpoint, save_tokenizer, write_text
from torch import Tensor

from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.model_set import ModelSet
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import build
from merge.commands.merge_models import main
from merge.errors import MismatchError, OutputError, RecipeError
from merge.methods.label_average import LabelAverage
from merge.recipe.recipe import make_recipe
from merge.run.plan.base_model import base_class, base_model
from merge.run.plan.classes import label_tensors
from merge.run.plan.heads import output_folders, plan_heads
from merge.run.plan.output_config import consistent_labels
from merge.run.rebase import rebase
from merge.run.report import Report
from merge.run.run import run
from merge.run.verify import verify
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import apply_axes

NER = ("O", "person", "place", "thing", "time")


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def merged(output: Path, *models: Path, **more: Any) -> Report:
    return run(make_recipe({"models": [str(m) for m in models], "output": str(output), **more}))


def is_encoder(name: str) -> bool:
    return name.startswith("bert.")


def encoder_part(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the base model's tensors by one set of names, pooler aside, whichever class wrote them."""
    own = {name.removeprefix("bert."): t for name, t in parts.items() if name.startswith(("bert.", "embed", "encoder"))}
    return {name: tensor for name, tensor in own.items() if "pooler" not in name}


@pytest.fixture
def nli(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "nli", seed=0)


@pytest.fixture
def ner(tmp_path: Path) -> Path:
    """A token classifier: no pooler, five classes, and a problem type of its own."""
    config = bert_config("BertForTokenClassification", labels=NER)
    return save_checkpoint(tmp_path / "ner", config, seed=1)


@pytest.fixture
def mlm(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "mlm", bert_config("BertForMaskedLM"), seed=2)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "bare", bert_config("BertModel"), seed=3)


@pytest.mark.parametrize("rule", [None, "average"])
def test_without_a_rule_that_covers_it_models_of_two_classes_are_refused(
    rule: str | None, nli: Path, ner: Path, tmp_path: Path
) -> None:
    with pytest.raises(MismatchError, match="architectures differ"):
        merged(tmp_path / "out", nli, ner, **({"heads": rule} if rule else {}))
    assert not (tmp_path / "out").exists()


def test_label_sets_that_differ_need_a_rule_and_the_error_names_it(nli: Path, tmp_path: Path) -> None:
    two = save_checkpoint(tmp_path / "two", bert_config(labels=("entailment", "other")), seed=5)
    with pytest.raises(MismatchError, match="label sets differ.*--heads average, reference, drop or keep-all"):
        merged(tmp_path / "out", nli, two)


def test_average_averages_each_class_over_the_models_that_have_it(nli: Path, tmp_path: Path) -> None:
    """Three models; each row of the result against the mean written out by hand, the encoder against the plain average."""
    two = save_checkpoint(tmp_path / "two", bert_config(labels=("Contradiction", "other")), seed=5)
    four = save_checkpoint(
        tmp_path / "four", bert_config(labels=("paradox", "neutral", "contradiction", "other")), seed=6
    )
    report = merged(tmp_path / "out", nli, two, four, heads="average")
    a, b, c, out = (tensors(folder) for folder in (nli, two, four, tmp_path / "out"))
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.allclose(out[name][0], a[name][0], atol=1e-7)  # entailment
        assert torch.allclose(out[name][1], (a[name][1] + c[name][1]) / 2, atol=1e-6)  # neutral
        assert torch.allclose(out[name][2], (a[name][2] + b[name][0] + c[name][2]) / 3, atol=1e-6)  # contradiction
        assert len(out[name]) == 3
    for name in filter(is_encoder, out):
        assert torch.allclose(out[name], (a[name] + b[name] + c[name]) / 3, atol=1e-6)
    said = "\n".join(report.notes)
    assert f"class entailment comes from {nli} alone" in said
    assert f"class neutral comes from {nli} and {four} alone" in said
    assert f"classes of {four} left out, which {nli} has not: paradox, other" in said
    assert config_of(tmp_path / "out")["id2label"] == config_of(nli)["id2label"]


def test_average_weighs_classes_as_linear_weighs_models(nli: Path, tmp_path: Path) -> None:
    two = save_checkpoint(tmp_path / "two", bert_config(labels=("neutral", "other")), seed=5)
    merged(tmp_path / "out", nli, two, heads="average", settings={"weights": [3, 1]})
    a, b, out = (tensors(folder)["classifier.weight"] for folder in (nli, two, tmp_path / "out"))
    assert torch.allclose(out[1], 0.75 * a[1] + 0.25 * b[0], atol=1e-6)
    assert torch.allclose(out[[0, 2]], a[[0, 2]], atol=1e-6)


def test_average_of_equal_label_sets_is_the_merge_without_a_rule(nli: Path, tmp_path: Path) -> None:
    """Swapped orders are permuted by name either way; the same bytes come out."""
    swapped = save_checkpoint(tmp_path / "b", bert_config(labels=("neutral", "contradiction", "entailment")), seed=5)
    merged(tmp_path / "one", nli, swapped)
    merged(tmp_path / "other", nli, swapped, heads="average")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "other/model.safetensors").read_bytes()


def test_the_label_average_against_numpy_and_classes_without_weight() -> None:
    """sum_m w_m x_m[row] / sum_m w_m over those that have it; a class whose only model has weight 0 is an error."""
    x, y = torch.arange(6.0).reshape(3, 2), torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    found = LabelAverage(rows=((0, 1, 2), (-1, 1, 0)), weights=(1.0, 3.0))([x, y])
    expected = [[0.0, 1.0], [(2 + 3 * 30) / 4, (3 + 3 * 40) / 4], [(4 + 3 * 10) / 4, (5 + 3 * 20) / 4]]
    assert torch.allclose(found, torch.tensor(expected))
    assert torch.equal(x, torch.arange(6.0).reshape(3, 2))
    with pytest.raises(Exception, match="class 0 of the result has a total weight of 0"):
        LabelAverage(rows=((0, 1), (-1, 1)), weights=(0.0, 1.0))


def test_reference_merges_the_encoder_and_keeps_the_head_of_the_first(
    nli: Path, ner: Path, mlm: Path, tmp_path: Path
) -> None:
    """Of a token classifier and a masked language model only what lies in the base model has a part in the result."""
    report = merged(tmp_path / "out", nli, ner, mlm, heads="reference")
    a, b, c, out = (tensors(folder) for folder in (nli, ner, mlm, tmp_path / "out"))
    assert out.keys() == a.keys()
    for name, tensor in out.items():
        if is_encoder(name) and "pooler" not in name:
            assert torch.allclose(tensor, (a[name] + b[name] + c[name]) / 3, atol=1e-6)
            assert not torch.equal(tensor, a[name])
        else:
            assert torch.equal(tensor, a[name])
    assert config_of(tmp_path / "out")["id2label"] == {"0": "entailment", "1": "neutral", "2": "contradiction"}
    said = "\n".join(report.notes)
    assert f"left out of {ner}: classifier.bias, classifier.weight" in said
    assert f"left out of {mlm}: cls.predictions" in said
    assert f"no pooler in {ner}, {mlm}: it is not merged and stays with the head" in said


def test_a_pooler_that_all_have_is_merged_with_the_encoder(nli: Path, bare: Path, tmp_path: Path) -> None:
    """The other side of the rule for poolers: then it is a part of the base model like any other."""
    report = merged(tmp_path / "out", nli, bare, heads="reference")
    a, b, out = tensors(nli), tensors(bare), tensors(tmp_path / "out")
    for name in ("pooler.dense.weight", "pooler.dense.bias"):
        assert torch.allclose(out[f"bert.{name}"], (a[f"bert.{name}"] + b[name]) / 2, atol=1e-6)
    assert "pooler" not in "\n".join(note for note in report.notes if "taken from" not in note)


@pytest.mark.parametrize("order", [("nli", "ner"), ("ner", "nli")])
def test_drop_writes_the_bare_encoder_without_a_word_of_labels(
    order: tuple[str, str], nli: Path, ner: Path, tmp_path: Path
) -> None:
    """BertModel, loaded without a complaint: the pooler is that of the first model that has one, wherever it stands."""
    folders = {"nli": nli, "ner": ner}
    report = merged(tmp_path / "out", *(folders[name] for name in order), heads="drop")
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model).__name__ == "BertModel"
    assert not any(info.values())
    a, b, out = tensors(nli), tensors(ner), tensors(tmp_path / "out")
    assert torch.equal(out["pooler.dense.weight"], a["bert.pooler.dense.weight"])
    for name, tensor in encoder_part(out).items():
        assert torch.allclose(tensor, (a[f"bert.{name}"] + b[f"bert.{name}"]) / 2, atol=1e-6)
    config = config_of(tmp_path / "out")
    assert config["architectures"] == ["BertModel"]
    assert not {"id2label", "label2id", "num_labels", "problem_type"} & config.keys()
    assert "it is not merged and is the first model's that has one" in "\n".join(report.notes)
    assert f"left out of {nli}: classifier.bias, classifier.weight" in report.notes


def test_a_head_that_was_dropped_is_gone_from_card_and_manifest_too(nli: Path, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "other", bert_config(labels=("x", "y"), problem_type="regression"), seed=8)
    merged(tmp_path / "out", other, nli, heads="drop")
    assert json.loads((tmp_path / "out/merge.json").read_text(encoding="utf-8"))["architecture"] == "BertModel"
    assert "text-classification" not in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "problem_type" not in config_of(tmp_path / "out")


def test_keep_all_writes_each_model_around_the_merged_encoder(nli: Path, ner: Path, mlm: Path, tmp_path: Path) -> None:
    """One folder a model: one encoder bit for bit in all, each head its own, each config its own, each verifiable."""
    report = merged(tmp_path / "out", nli, ner, mlm, heads="keep-all")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["mlm", "ner", "nli"]
    encoders = [encoder_part(tensors(tmp_path / "out" / name)) for name in ("nli", "ner", "mlm")]
    originals = [encoder_part(tensors(folder)) for folder in (nli, ner, mlm)]
    for name, tensor in encoders[0].items():
        assert all(torch.equal(other[name], tensor) for other in encoders[1:])
        assert torch.allclose(tensor, sum(one[name] for one in originals) / 3, atol=1e-6)
    for folder in (nli, ner, mlm):
        own, out = tensors(folder), tensors(tmp_path / "out" / folder.name)
        assert own.keys() == out.keys()
        heads = [name for name in own if not is_encoder(name) or "pooler" in name]
        assert heads
        assert all(torch.equal(out[name], own[name]) for name in heads)
        written, stated = config_of(tmp_path / "out" / folder.name), config_of(folder)
        assert {k: written.get(k) for k in ("architectures", "id2label", "label2id")} == {
            k: stated.get(k) for k in ("architectures", "id2label", "label2id")
        }
        assert verify(tmp_path / "out" / folder.name).holds
        assert (tmp_path / "out" / folder.name / "tokenizer.json").is_file()
    assert f"ner/ has the head of {ner}" in report.notes


def test_a_changed_file_in_one_folder_fails_the_verification_of_that_folder_alone(
    nli: Path, ner: Path, tmp_path: Path
) -> None:
    merged(tmp_path / "out", nli, ner, heads="keep-all")
    (tmp_path / "out/ner/config.json").write_text("{}", encoding="utf-8")
    assert not verify(tmp_path / "out/ner").holds
    assert verify(tmp_path / "out/nli").holds


def test_folders_are_named_apart() -> None:
    assert output_folders(["x/model", "y/model", "org/model", "a/"]) == ("model", "model-2", "model-3", "a")
    assert output_folders(["model-2", "x/model", "y/model"]) == ("model-2", "model", "model-3")
    assert output_folders(["."]) == (Path.cwd().name,)


def test_keep_all_is_in_place_whole_or_not_at_all(
    nli: Path, ner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second folder does not reload: neither it nor the first, which was already written, is left."""
    from merge.run import outputs as module

    seen = []

    def second_fails(folder: Path, *rest: Any) -> tuple[str, ...]:
        seen.append(folder.name)
        if len(seen) == 2:
            raise OutputError("does not reload")
        return ()

    monkeypatch.setattr(module, "reload_check", second_fails)
    with pytest.raises(OutputError, match="does not reload"):
        merged(tmp_path / "out", nli, ner, heads="keep-all")
    assert seen == ["nli", "ner"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ner", "nli"]


def test_force_replaces_folders_of_merges_and_nothing_else(nli: Path, ner: Path, tmp_path: Path) -> None:
    """A folder of folders is a checkpoint to nobody else; one stray file in it is the user's."""
    recipe = make_recipe({"models": [str(nli), str(ner)], "output": str(tmp_path / "out"), "heads": "keep-all"})
    run(recipe)
    with pytest.raises(OutputError, match="exists"):
        run(recipe)
    run(recipe, force=True)
    assert verify(tmp_path / "out/ner").holds
    (tmp_path / "out/notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="holds no checkpoint"):
        run(recipe, force=True)


def outputs(folder: Path, batches: Any) -> list[dict[str, Tensor]]:
    opened = open_checkpoint(str(folder))
    model = build(opened.config, {opened.written_name(n): t for n, t in opened.state_dict().items()}, torch.float64)
    with torch.inference_mode():
        return [dict(model(**batch)) for batch in batches]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["weights", "activations"])
def test_a_head_follows_its_encoder_into_the_basis_of_the_reference(
    by: str, nli: Path, ner: Path, mlm: Path, tmp_path: Path
) -> None:
    """Head k on the unmerged aligned encoder k computes what model k computes; without its permutation it does not.

    A merge with weight 0 for all models but one *is* that model's aligned encoder, so what is written for it must have its
    outputs, in float32; random models are strangers, so every axis moves.
    """
    text = write_text(tmp_path / "text.txt")
    align = {"by": by, "text": str(text), "axes": ["residual", "heads", "ffn"], "samples": 64}
    folders = [nli, ner, mlm]
    for k in (1, 2):
        weights = [float(i == k) for i in range(3)]
        report = merged(tmp_path / f"out{k}", *folders, heads="keep-all", align=align, settings={"weights": weights})
        batches = random_inputs(open_checkpoint(str(nli)).config)
        wanted, found = outputs(folders[k], batches), outputs(tmp_path / f"out{k}" / folders[k].name, batches)
        for one, other in zip(wanted, found, strict=True):
            assert torch.allclose(one["logits"], other["logits"], atol=1e-5)
        transform = report.rebased.transforms[k]
        assert transform is not None
        permutation = transform.permutation
        assert permutation.moved()["residual"][0] > 10
        unmoved = tensors(folders[k])
        moved = tensors(tmp_path / f"out{k}" / folders[k].name)
        head = "classifier.weight" if k == 1 else "cls.predictions.transform.dense.weight"
        assert not torch.equal(unmoved[head], moved[head])
        # The negative control: the same encoder with the head where it was.
        opened = open_checkpoint(str(tmp_path / f"out{k}" / folders[k].name))
        wrong = build(opened.config, moved | {head: unmoved[head]}, torch.float64)
        with torch.inference_mode():
            assert (wrong(**batches[0])["logits"] - wanted[0]["logits"]).abs().max() > 1e-2
    assert all(aligned.proof.outputs == ("logits",) for aligned in report.rebased.aligned)


@pytest.mark.slow
def test_an_aligned_average_moves_classifiers_before_their_rows_are_averaged(nli: Path, tmp_path: Path) -> None:
    """Against the permutation applied by hand: columns of the other classifier stand as the reference's pooler does."""
    two = save_checkpoint(tmp_path / "two", bert_config(labels=("neutral", "other")), seed=5)
    align = {"by": "weights", "axes": ["residual", "heads", "ffn", "pooler"]}
    report = merged(tmp_path / "out", nli, two, heads="average", align=align)
    a, b, out = (tensors(folder)["classifier.weight"] for folder in (nli, two, tmp_path / "out"))
    transform = report.rebased.transforms[1]
    assert transform is not None
    permutation = transform.permutation
    order = permutation.indices["pooler"]
    assert not torch.equal(order, torch.arange(len(order)))
    assert torch.allclose(out[1], (a[1] + b[0][order]) / 2, atol=1e-6)
    assert torch.allclose(out[0], a[0], atol=1e-6)


@pytest.mark.slow
def test_a_dropped_head_does_not_hinder_alignment(nli: Path, ner: Path, tmp_path: Path) -> None:
    """The merged encoder is the average of the reference's and the permuted one, the pooler moved with its own model."""
    align = {"by": "weights", "axes": ["residual", "heads", "ffn"]}
    report = merged(tmp_path / "out", ner, nli, heads="drop", align=align)
    transform = report.rebased.transforms[1]
    assert transform is not None
    permutation = transform.permutation
    spec = spec_for(bert_config("BertModel"))
    a, b, out = tensors(ner), tensors(nli), tensors(tmp_path / "out")
    for name in encoder_part(out):
        moved = apply_axes(spec.axes(f"bert.{name}"), permutation, b[f"bert.{name}"])
        assert torch.allclose(out[name], (a[f"bert.{name}"] + moved) / 2, atol=1e-6)
    pooler = b["bert.pooler.dense.weight"][:, permutation.indices["residual"]]
    assert torch.equal(out["pooler.dense.weight"], pooler)


def test_task_vectors_of_models_with_other_heads_start_from_one_base(
    nli: Path, ner: Path, bare: Path, tmp_path: Path
) -> None:
    """base + 0.5 (a - base) + 0.5 (b - base) on the encoder; the base's own pooler is no part of it."""
    merged(
        tmp_path / "out", nli, ner, heads="keep-all", base=str(bare), method="task_arithmetic", settings={"scale": 0.5}
    )
    a, b, base = (encoder_part(tensors(folder)) for folder in (nli, ner, bare))
    for folder in ("nli", "ner"):
        for name, tensor in encoder_part(tensors(tmp_path / "out" / folder)).items():
            expected = base[name] + 0.5 * (a[name] - base[name]) + 0.5 * (b[name] - base[name])
            assert torch.allclose(tensor, expected, atol=1e-6)


SIZES = {"vocab_size": 18, "max_position_embeddings": 40}
BERT_SIZES = SIZES | {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta": ("Roberta", BERT_SIZES | {"type_vocab_size": 1}),
    "distilbert": ("DistilBert", SIZES | {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40}),
    "electra": ("Electra", BERT_SIZES | {"embedding_size": 24}),
    "albert": ("Albert", BERT_SIZES | {"embedding_size": 16}),
}


@pytest.mark.parametrize("family", quick_on(("roberta", "albert"), FAMILIES))
def test_every_familys_base_model_is_merged_under_two_heads(family: str, tmp_path: Path) -> None:
    """A classifier and a masked language model: heads of several layers, poolers that are there or not, tied decoders."""
    name, sizes = FAMILIES[family]
    labels = {"id2label": {"0": "x", "1": "y", "2": "z"}, "label2id": {"x": 0, "y": 1, "z": 2}}
    made = {"a": f"{name}ForSequenceClassification", "b": f"{name}ForMaskedLM"}
    for seed, (folder, architecture) in enumerate(made.items()):
        config = {"architectures": [architecture], "model_type": family} | sizes | (labels if folder == "a" else {})
        save_checkpoint(tmp_path / folder, config, seed=seed)
    merged(tmp_path / "out", tmp_path / "a", tmp_path / "b", heads="keep-all")
    a, b = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    shared = {
        n for n in a.keys() & b.keys() if n.startswith(f"{open_checkpoint(str(tmp_path / 'a')).structure.prefix}.")
    }
    assert len(shared) > 15
    for folder, own in (("a", a), ("b", b)):
        out = tensors(tmp_path / "out" / folder)
        assert out.keys() == own.keys()
        assert len(own.keys() - shared) > 1
        for one, tensor in out.items():
            expected = (a[one] + b[one]) / 2 if one in shared else own[one]
            assert torch.allclose(tensor, expected, atol=1e-6)
    merged(tmp_path / "bare", tmp_path / "a", tmp_path / "b", heads="drop")
    assert config_of(tmp_path / "bare")["architectures"] == [f"{name}Model"]


def test_encoders_that_do_not_fit_are_still_refused(nli: Path, tmp_path: Path) -> None:
    """A rule for heads is none for layers, sizes or families."""
    longer = save_checkpoint(tmp_path / "longer", bert_config("BertModel", num_hidden_layers=3), seed=1)
    with pytest.raises(MismatchError, match="num_hidden_layers"):
        merged(tmp_path / "out", nli, longer, heads="reference")
    gelu = save_checkpoint(tmp_path / "relu", bert_config("BertModel", hidden_act="relu"), seed=1)
    with pytest.raises(MismatchError, match="hidden_act"):
        merged(tmp_path / "out", nli, gelu, heads="keep-all")


def test_an_override_that_names_only_the_head_names_nothing_that_is_merged(
    nli: Path, ner: Path, tmp_path: Path
) -> None:
    override = [{"tensors": "classifier.*", "settings": {"weights": [1, 0]}}]
    with pytest.raises(RecipeError, match=r"no tensor is named 'classifier\.\*'"):
        merged(tmp_path / "out", nli, ner, heads="reference", overrides=override)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"heads": "keepall"}, "heads: expected 'average', 'reference', 'drop' or 'keep-all', found 'keepall'"),
        ({"heads": "drop", "slices": [{"layers": "0"}]}, "cannot be combined with slices"),
        (
            {"heads": "average", "method": "greedy_soup", "settings": {"scorer": "score {model}"}},
            "cannot be combined with greedy_soup",
        ),
        ({"heads": "keep-all", "evaluation": [{"task": "mnli"}]}, "cannot be combined with evaluation"),
    ],
)
def test_rules_that_do_not_go_with_the_rest_of_a_recipe(more: dict[str, Any], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        make_recipe({"models": ["a", "b"], **more})


def test_written_labels_agree_with_one_another() -> None:
    """num_labels and label2id that say another thing than id2label are set right; what is right stays as it is."""
    config = bert_config()
    assert consistent_labels(config, structure_of(config)) == config
    stale = config | {"label2id": {"LABEL_0": 0}, "num_labels": 2}
    right = consistent_labels(stale, structure_of(config))
    assert right == config
    bare = bert_config("BertModel")
    assert consistent_labels(bare, structure_of(bare)) == bare


def test_heads_follow_a_vocabulary_that_is_united(tmp_path: Path) -> None:
    """Both folders read the words of both; a head with a row for each token has none for the other's words."""
    folders = []
    for k, architecture in enumerate(("BertForSequenceClassification", "BertForMaskedLM")):
        config = bert_config(architecture, vocab_size=19)
        folders.append(save_checkpoint(tmp_path / "ab"[k], config, seed=k, tokenizer=False))
        save_tokenizer(folders[k], [*WORDS, f"word{k}"])
    classifier = save_checkpoint(tmp_path / "c", bert_config(labels=("x", "y"), vocab_size=19), seed=3, tokenizer=False)
    save_tokenizer(classifier, [*WORDS, "word2"])
    merged(tmp_path / "out", folders[0], classifier, heads="keep-all", tokenizer="union")
    for name in ("a", "c"):
        assert config_of(tmp_path / "out" / name)["vocab_size"] == 20
        assert len(tensors(tmp_path / "out" / name)["bert.embeddings.word_embeddings.weight"]) == 20
        words = json.loads((tmp_path / "out" / name / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        assert {"word0", "word2"} <= words.keys()
    with pytest.raises(MismatchError, match="cls.predictions.bias of .* has one row per token, and none for 1 tokens"):
        merged(tmp_path / "none", *folders, heads="keep-all", tokenizer="union")
    merged(tmp_path / "dropped", *folders, heads="drop", tokenizer="union")
    assert len(tensors(tmp_path / "dropped")["embeddings.word_embeddings.weight"]) == 20


@pytest.mark.parametrize("by", quick_on(("none",), ("none", "weights")))
def test_statistics_of_each_model_are_measured_with_its_own_head(by: str, nli: Path, ner: Path, tmp_path: Path) -> None:
    """Fisher information needs predictions, which bare encoders do not have."""
    text = write_text(tmp_path / "text.txt")
    align = {"by": by, "axes": ["ffn"]} if by != "none" else {"by": by}
    report = merged(
        tmp_path / "out",
        nli,
        ner,
        heads="keep-all",
        method="fisher",
        align=align,
        statistics={"text": str(text), "samples": 16},
    )
    assert [one.architecture for one in report.statistics["fisher"]] == [
        "BertForSequenceClassification",
        "BertForTokenClassification",
    ]
    name = "bert.encoder.layer.0.intermediate.dense.bias"
    a, b, out = (tensors(folder)[name] for folder in (nli, ner, tmp_path / "out" / "nli"))
    transform = report.rebased.transforms[1]
    order = torch.arange(len(b)) if transform is None else transform.permutation.indices["ffn0"]
    f, g = (one.tensors[name] / one.mean for one in report.statistics["fisher"])
    assert torch.equal(torch.arange(len(b)), order) == (by == "none")
    expected = (f * a + g * b[order]) / (f + g)
    assert torch.allclose(out, expected.float(), atol=1e-4)


def test_the_base_model_is_told_from_its_head(nli: Path, ner: Path, bare: Path) -> None:
    for folder in (nli, ner, bare):
        opened = open_checkpoint(str(folder))
        assert base_class(opened) == "BertModel"
        assert {name.split(".")[0] for name in base_model(opened).tensors} == {"bert"}
    assert label_tensors(open_checkpoint(str(ner))) == {"classifier.weight", "classifier.bias"}
    assert label_tensors(open_checkpoint(str(bare))) == frozenset()


def test_a_plan_without_a_rule_merges_whole_models(nli: Path) -> None:
    opened = open_checkpoint(str(nli))
    plan = plan_heads(None, ModelSet((opened, opened)))
    assert plan.whole
    assert plan.outputs[0].sources.keys() == opened.tensors.keys()
    assert not plan_heads("reference", ModelSet((opened, opened))).whole


def test_the_flag_spells_the_key(nli: Path, ner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And pushing several models as one is refused before anything is merged."""
    arguments = ["merge-models", str(nli), str(ner), "--heads", "keep-all", "-o", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--push-to-hub", "me/m"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    assert (tmp_path / "out/ner/config.json").is_file()


def test_alignment_without_a_rule_is_what_it_was(tmp_path: Path) -> None:
    """Whole models have one spec, whose lines are the table's."""
    folders = [save_checkpoint(tmp_path / name, seed=k) for k, name in enumerate("ab")]
    models = [open_checkpoint(str(folder)) for folder in folders]
    recipe = make_recipe({"models": [str(f) for f in folders], "align": {"by": "weights", "axes": ["ffn"]}})
    bases = rebase(recipe.align, plan_heads(None, ModelSet(tuple(models))))
    assert [bases.spec_of(k) for k in range(2)] == [spec_for(models[0].config)] * 2
    assert len(random_tensors(models[0].config, 0)) == len(models[0].tensors)
