"""The whole run on tiny models: what is written is the merge, the proof and nothing else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import bert_config, random_tensors, save_checkpoint, save_tokenizer, write_text

from merge.checkpoints.open import open_checkpoint
from merge.errors import AlignmentError, CalibrationError, MismatchError
from merge.publish.card_results import add_results
from merge.recipe.recipe import Recipe, make_recipe
from merge.run.run import run
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import apply, random, restrict
from merge.symmetry.transform import apply_transform
from merge.symmetry.transform_files import load_transform


def recipe(*models: Path, output: Path, **more: object) -> Recipe:
    return make_recipe({"models": [str(m) for m in models], "output": str(output), **more})


def plant(source: Path, target: Path, seed: int = 1) -> Path:
    """Save a re-based copy of a checkpoint: the same function in another basis, labels left where they are."""
    opened = open_checkpoint(str(source))
    spec = spec_for(opened.config)
    p = random(spec, opened.shapes, torch.Generator().manual_seed(seed))
    moved = apply(spec, restrict(p, set(p.indices) - spec.named), opened.state_dict())
    tensors = {opened.written_name(name): tensor for name, tensor in moved.items()}
    return save_checkpoint(target, opened.config, tensors=tensors)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return save_checkpoint(tmp_path / "a", seed=0), save_checkpoint(tmp_path / "b", seed=1)


def test_a_linear_merge_is_the_average_of_every_tensor(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Read back with from_pretrained, against the plain formula."""
    run(recipe(*pair, output=tmp_path / "out"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    a, b = (load_file(folder / "model.safetensors") for folder in pair)
    merged = model.state_dict()
    assert merged.keys() == a.keys()
    assert all(torch.allclose(merged[n], (a[n] + b[n]) / 2, atol=1e-7) for n in a)
    assert not torch.allclose(merged["classifier.weight"], a["classifier.weight"], atol=1e-3)


def test_weights_are_normalised_over_n_models(tmp_path: Path) -> None:
    folders = [save_checkpoint(tmp_path / name, seed=k) for k, name in enumerate("abc")]
    run(make_recipe({
        "models": [{"model": str(f), "weight": w} for f, w in zip(folders, (2, 1, 1), strict=True)],
        "output": str(tmp_path / "out"),
    }))  # fmt: skip
    parts = [load_file(f / "model.safetensors") for f in folders]
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.allclose(merged[n], (2 * parts[0][n] + parts[1][n] + parts[2][n]) / 4, atol=1e-6) for n in merged)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["activations", "weights"])
def test_merging_a_model_with_its_re_based_copy_gives_the_model_back(by: str, tmp_path: Path) -> None:
    """The known answer of the whole run: the naive average of the two is another model, the aligned one is the model."""
    a = save_checkpoint(tmp_path / "a")
    b = plant(a, tmp_path / "b")
    text = str(write_text(tmp_path / "sample.txt"))
    run(recipe(a, b, output=tmp_path / "aligned", align={"by": by, "text": text}))
    run(recipe(a, b, output=tmp_path / "naive"))
    original, naive, aligned = (load_file(tmp_path / f / "model.safetensors") for f in ("a", "naive", "aligned"))
    assert all(torch.allclose(aligned[n], original[n], atol=1e-6) for n in original)
    assert any(not torch.allclose(naive[n], original[n], atol=1e-2) for n in original)


@pytest.mark.slow
def test_the_saved_transform_repeats_the_alignment(tmp_path: Path) -> None:
    """b under transform.safetensors, averaged with a by hand, is the merge."""
    a, b = save_checkpoint(tmp_path / "a", seed=0), save_checkpoint(tmp_path / "b", seed=1)
    text = str(write_text(tmp_path / "sample.txt"))
    run(recipe(a, b, output=tmp_path / "out", align={"by": "activations", "text": text, "axes": ["heads", "ffn"]}))
    opened = open_checkpoint(str(b))
    spec = spec_for(opened.config)
    saved = load_transform(spec, tmp_path / "out" / "transform.safetensors")
    moved = apply_transform(spec, saved, opened.state_dict())
    reference, merged = load_file(a / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.allclose(merged[n], (reference[n] + moved[n]) / 2, atol=1e-6) for n in merged)
    assert any(not torch.equal(moved[n], opened.tensor(n)) for n in moved)


@pytest.mark.slow
def test_swapped_labels_are_matched_by_name_and_alignment_comes_on_top(tmp_path: Path) -> None:
    """b is a with its classes turned and re-based: matched by name and aligned, the merge is a."""
    a = save_checkpoint(tmp_path / "a")
    tensors = load_file(a / "model.safetensors")
    turn = torch.tensor([2, 0, 1])
    turned = tensors | {n: tensors[n][turn] for n in ("classifier.weight", "classifier.bias")}
    config = bert_config(labels=("contradiction", "entailment", "neutral"))
    b = plant(save_checkpoint(tmp_path / "turned", config, tensors=turned), tmp_path / "b")
    report = run(
        recipe(a, b, output=tmp_path / "out", align={"by": "weights", "axes": ["residual", "heads", "ffn", "pooler"]})
    )
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.allclose(merged[n], tensors[n], atol=1e-6) for n in tensors)
    assert any("reordered by name to entailment, neutral, contradiction" in note for note in report.notes)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]["0"] == "entailment"


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture", ["BertModel", "BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering",
                     "BertForMultipleChoice", "BertForNextSentencePrediction", "BertForPreTraining"]
)  # fmt: skip
def test_every_head_merges_aligns_and_reloads(architecture: str, tmp_path: Path) -> None:
    """A re-based copy, so that the answer is known for every head; nothing is missing or left over on reload."""
    a = save_checkpoint(tmp_path / "a", bert_config(architecture))
    b = plant(a, tmp_path / "b")
    text = str(write_text(tmp_path / "sample.txt"))
    run(recipe(a, b, output=tmp_path / "out", align={"by": "activations", "text": text, "axes": list(kinds_of(a))}))
    original, merged = load_file(a / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == original.keys()
    assert all(torch.allclose(merged[n], original[n], atol=1e-6) for n in original)
    _, info = getattr(transformers, architecture).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))


def kinds_of(folder: Path) -> tuple[str, ...]:
    opened = open_checkpoint(str(folder))
    spec = spec_for(opened.config)
    return tuple(dict.fromkeys(spec.kind(axis) for axis in spec.fit(opened.shapes) if axis not in spec.named))


@pytest.mark.slow
def test_without_a_tokenizer_weights_align_all_axes_and_say_so(tmp_path: Path) -> None:
    a = save_checkpoint(tmp_path / "a", tokenizer=False)
    b = plant(a, tmp_path / "b")
    (b / "tokenizer.json").unlink()
    (b / "tokenizer_config.json").unlink()
    report = run(recipe(a, b, output=tmp_path / "out", align={"by": "weights"}))
    assert any("has no tokenizer" in note for note in report.notes)
    assert report.rebased.aligned[0].proof.error < 1e-9
    merged, original = (load_file(tmp_path / f / "model.safetensors") for f in ("out", "a"))
    assert all(torch.allclose(merged[n], original[n], atol=1e-6) for n in original)
    with pytest.raises(CalibrationError, match="has no tokenizer"):
        run(recipe(a, b, output=tmp_path / "other", align={"by": "activations"}))


def test_dtypes_survive_and_a_mix_needs_a_word(tmp_path: Path) -> None:
    """float16 in, float16 out, averaged in float32; a mix of dtypes is refused until --dtype says what to write."""
    config = bert_config()
    tensors = [random_tensors(config, seed, torch.float16) for seed in (0, 1)]
    a, b = (save_checkpoint(tmp_path / f, config, tensors=t) for f, t in zip("ab", tensors, strict=True))
    run(recipe(a, b, output=tmp_path / "out"))
    merged = load_file(tmp_path / "out" / "model.safetensors")
    expected = {n: ((tensors[0][n].float() + tensors[1][n].float()) / 2).half() for n in merged}
    assert all(merged[n].dtype == torch.float16 and torch.equal(merged[n], expected[n]) for n in merged)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    c = save_checkpoint(tmp_path / "c", config, seed=2)
    with pytest.raises(MismatchError, match="--out-dtype float32"):
        run(recipe(a, c, output=tmp_path / "mixed"))
    run(recipe(a, c, output=tmp_path / "mixed", out_dtype="bfloat16"))
    mixed = load_file(tmp_path / "mixed" / "model.safetensors")
    assert {t.dtype for t in mixed.values()} == {torch.bfloat16}


def test_old_names_and_pickles_merge_with_new_ones(tmp_path: Path) -> None:
    """gamma and beta, no prefix problems, a .bin with position ids: the merge equals that of the same models saved anew."""
    a, b = save_checkpoint(tmp_path / "a", seed=0), save_checkpoint(tmp_path / "b", seed=1)
    run(recipe(a, b, output=tmp_path / "new"))
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in load_file(b / "model.safetensors").items()
    } | {"bert.embeddings.position_ids": torch.arange(32)[None]}
    torch.save(old, b / "pytorch_model.bin")
    (b / "model.safetensors").unlink()
    report = run(recipe(a, b, output=tmp_path / "mixed"))
    new, mixed = (load_file(tmp_path / f / "model.safetensors") for f in ("new", "mixed"))
    assert new.keys() == mixed.keys()
    assert all(torch.equal(new[n], mixed[n]) for n in new)
    assert any("gamma and beta" in note for note in report.notes)
    assert any("position_ids" in note for note in report.notes)


def test_side_files_come_along_and_foreign_weights_do_not(tmp_path: Path) -> None:
    """A sentence-transformers folder stays one; what is not copied is said."""
    a, b = (save_checkpoint(tmp_path / f, bert_config("BertModel"), seed=k) for k, f in enumerate("ab"))
    (a / "1_Pooling").mkdir()
    (a / "1_Pooling" / "config.json").write_text("{}")
    (a / "modules.json").write_text("[]")
    (a / "onnx").mkdir()
    (a / "onnx" / "model.onnx").write_bytes(b"x")
    report = run(recipe(a, b, output=tmp_path / "out"))
    out = tmp_path / "out"
    assert (out / "1_Pooling" / "config.json").is_file()
    assert (out / "modules.json").is_file()
    assert (out / "tokenizer.json").read_bytes() == (a / "tokenizer.json").read_bytes()
    assert not (out / "onnx").exists()
    assert any("onnx/model.onnx" in note for note in report.notes)


@pytest.mark.slow
def test_the_manifest_holds_true_hashes_and_the_card_the_evidence(pair: tuple[Path, Path], tmp_path: Path) -> None:
    text = str(write_text(tmp_path / "sample.txt"))
    run(recipe(*pair, output=tmp_path / "out", align={"by": "activations", "text": text}))
    manifest = json.loads((tmp_path / "out" / "merge.json").read_text())
    files = {p.name for p in (tmp_path / "out").iterdir()} - {"merge.json"}
    assert set(manifest["files"]) == files
    for name, stated in manifest["files"].items():
        assert stated == hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest()
    for model, folder in zip(manifest["models"], pair, strict=True):
        assert (
            model["files"]["model.safetensors"]
            == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        )
    assert manifest["alignment"][0]["proof"]["error"] <= manifest["alignment"][0]["proof"]["bound"] == 1e-9
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- merge\n" in card
    assert "Proof: before any averaging" in card
    assert "base_model" not in card


def test_scores_reach_the_card_only_if_they_are_of_this_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run(recipe(*pair, output=tmp_path / "out"))
    own = open_checkpoint(str(tmp_path / "out")).content_hash

    def results(digest: str) -> Path:
        record = {
            "kind": "scores", "key": "k", "task": "mnli", "split": "validation", "data": "rows", "n": 5,
            "model": {"name": "out", "hash": digest}, "scores": {"accuracy": 0.625, "loss": 0.75},
        }  # fmt: skip
        path = tmp_path / "results.json"
        path.write_text(json.dumps({"format": 1, "results": [record]}))
        return path

    assert add_results(tmp_path / "out", results(own)) == 1
    assert "0.6250" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(Exception, match="holds no score of"):
        add_results(tmp_path / "out", results("0" * 64))


def test_nothing_is_written_when_the_proof_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table with one wrong line stops the run before anything is averaged."""
    import merge.alignment.task

    a = save_checkpoint(tmp_path / "a")
    b = plant(a, tmp_path / "b")
    right = merge.alignment.task.spec_for

    def wrong(config: dict) -> object:
        spec = right(config)
        lines = {**spec.lines, "bert.encoder.layer.0.output.dense.weight": "residual -"}
        return type(spec)(spec.family, lines, spec.sizes, spec.taps, spec.outputs, spec.named)

    monkeypatch.setattr(merge.alignment.task, "spec_for", wrong)
    with pytest.raises(AlignmentError, match="is not the model it was"):
        run(recipe(a, b, output=tmp_path / "out", align={"by": "weights", "axes": ["ffn"]}))
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """Equal shapes, other words: rows of the embedding table would be mixed up."""
    a, b = save_checkpoint(tmp_path / "a"), save_checkpoint(tmp_path / "b", seed=1)
    words = json.loads((a / "tokenizer.json").read_text())["model"]["vocab"]
    plain = sorted((w for w in words if not w.startswith("[")), key=words.get)
    save_tokenizer(b, [plain[1], plain[0], *plain[2:]])
    with pytest.raises(MismatchError, match="vocabularies differ: 2 entries"):
        run(recipe(a, b, output=tmp_path / "out"))


REMBERT = {
    "architectures": ["RemBertForSequenceClassification"], "model_type": "rembert", "vocab_size": 18, "hidden_size": 24,
    "input_embedding_size": 12, "output_embedding_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 32, "classifier_dropout_prob": 0.0,
    "id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2},
}  # fmt: skip


@pytest.mark.slow
def test_a_family_without_a_table_is_aligned_by_a_derived_one(tmp_path: Path) -> None:
    """The known answer again, on a model that no table was written for; the report says where the table came from."""
    a = save_checkpoint(tmp_path / "a", REMBERT)
    b = plant(a, tmp_path / "b")
    report = run(recipe(a, b, output=tmp_path / "out", align={"by": "weights", "axes": kinds_of(a)}))
    original, other, merged = (load_file(tmp_path / f / "model.safetensors") for f in ("a", "b", "out"))
    assert all(torch.allclose(merged[n], original[n], atol=1e-5) for n in original)
    assert any(not torch.allclose(other[n], original[n], atol=1e-2) for n in original)
    assert any("rembert has no permutation table; one was derived" in note for note in report.notes)


@pytest.mark.slow
def test_swapped_labels_of_a_family_without_a_table_are_reordered(tmp_path: Path) -> None:
    """The derived table knows the axis of the labels as the written ones do."""
    a = save_checkpoint(tmp_path / "a", REMBERT)
    tensors, order = load_file(a / "model.safetensors"), [2, 0, 1]
    names = ["yes", "no", "perhaps"]
    labels = {"id2label": {str(i): names[j] for i, j in enumerate(order)}}
    turned = {n: t[order] if n.startswith("classifier.") else t for n, t in tensors.items()}
    b = save_checkpoint(tmp_path / "b", {**REMBERT, **labels, "label2id": {names[j]: i for i, j in enumerate(order)}},
                        tensors=turned)  # fmt: skip
    run(recipe(a, b, output=tmp_path / "out"))
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.allclose(merged[n], tensors[n], atol=1e-6) for n in tensors)
