"""What other tools get wrong without a word: each case is done right here, or stops with one clear line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import warm
from layered import FAMILY
from quick import quick_on
from safetensors.torch import load_file, save_file
from tiny import bert_config, random_tensors, save_checkpoint

import merge.checkpoints.weights.write
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.weights.write import WeightFile
from merge.errors import CheckpointError, MergeError, MismatchError, OutputError, RecipeError, UsageError
from merge.recipe.recipe import make_recipe, read_recipe
from merge.run.run import run

PLAIN = {k: v for k, v in bert_config("BertModel").items() if k not in ("architectures", "model_type")}
ROBERTA = PLAIN | {"pad_token_id": 1, "max_position_embeddings": 40, "type_vocab_size": 1}
DISTIL: dict[str, Any] = {
    "vocab_size": 18, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 32,
}  # fmt: skip
ELECTRA = PLAIN | {"embedding_size": 12}

# Every class that loses its head, or cannot be merged at all, in the tool most people use.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "BertModel": ("bert", PLAIN),
    "BertForMaskedLM": ("bert", PLAIN),
    "BertForQuestionAnswering": ("bert", PLAIN),
    "BertForPreTraining": ("bert", PLAIN),
    "BertForNextSentencePrediction": ("bert", PLAIN),
    "BertForMultipleChoice": ("bert", PLAIN),
    "RobertaModel": ("roberta", ROBERTA),
    "RobertaForQuestionAnswering": ("roberta", ROBERTA),
    "DistilBertModel": ("distilbert", DISTIL),
    "DistilBertForQuestionAnswering": ("distilbert", DISTIL),
    "ElectraForPreTraining": ("electra", ELECTRA),
    "ElectraForTokenClassification": ("electra", ELECTRA),
    "AlbertForSequenceClassification": ("albert", ELECTRA),
    "DebertaV2ForSequenceClassification": ("deberta-v2", PLAIN),
    "MPNetForMaskedLM": ("mpnet", ROBERTA),
}


# One of each family, and of each way in which a head holds its tensors.
QUICK = (
    "BertForPreTraining",
    "RobertaModel",
    "DistilBertForQuestionAnswering",
    "ElectraForTokenClassification",
    "MPNetForMaskedLM",
)


def made(folder: Path, architecture: str, family: str, sizes: dict[str, Any], seed: int) -> Path:
    config = {"architectures": [architecture], "model_type": family, **sizes}
    return save_checkpoint(folder, config, seed=seed, tokenizer=False)


def recipe(*models: Path, output: Path, **more: Any) -> Any:
    return make_recipe({"models": [str(m) for m in models], "output": str(output), **more})


@pytest.mark.parametrize("architecture", quick_on(QUICK, CLASSES))
def test_every_tensor_of_every_class_is_merged_and_loads_again(architecture: str, tmp_path: Path) -> None:
    """Heads too: the average of each tensor, under the names that from_pretrained looks for."""
    family, sizes = CLASSES[architecture]
    a, b = (made(tmp_path / name, architecture, family, sizes, seed) for seed, name in enumerate("ab"))
    run(recipe(a, b, output=tmp_path / "out"))
    left, right, merged = (load_file(folder / "model.safetensors") for folder in (a, b, tmp_path / "out"))
    assert merged.keys() == left.keys()
    assert all(torch.allclose(merged[n], (left[n] + right[n]) / 2, atol=1e-6) for n in left)
    assert any(not torch.allclose(merged[n], left[n], atol=1e-2) for n in left)
    _, info = getattr(transformers, architecture).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize(
    "family", quick_on(("t5", "vit", "gpt2"), ("t5", "vit", "clip", "modernbert", "gpt2", "llama"))
)
def test_models_that_are_no_plain_encoders_merge_as_well(family: str, tmp_path: Path) -> None:
    """Names on disk that differ from those in memory, tied heads, two towers."""
    architecture, sizes, _ = FAMILY[family]
    a, b = (made(tmp_path / name, architecture, family, sizes, seed) for seed, name in enumerate("ab"))
    run(recipe(a, b, output=tmp_path / "out"))
    left, right, merged = (load_file(folder / "model.safetensors") for folder in (a, b, tmp_path / "out"))
    assert merged.keys() == left.keys()
    floats = [name for name in left if left[name].is_floating_point()]
    assert all(torch.allclose(merged[n], (left[n] + right[n]) / 2, atol=1e-6) for n in floats)


def test_an_encoder_and_its_classifier_are_two_architectures(tmp_path: Path) -> None:
    a, b = save_checkpoint(tmp_path / "a", bert_config("BertModel")), save_checkpoint(tmp_path / "b")
    with pytest.raises(MismatchError, match="a is BertModel .*, .*b is BertForSequenceClassification"):
        run(recipe(a, b, output=tmp_path / "out"))


def test_a_config_without_a_class_is_one_line(tmp_path: Path) -> None:
    a, b = (save_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    config = json.loads((b / "config.json").read_text(encoding="utf-8"))
    del config["architectures"]
    (b / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"b: config.json must name one architecture, found \[\]"):
        run(recipe(a, b, output=tmp_path / "out"))


WRONG: dict[str, tuple[str, str]] = {
    "a method misspelt": ("method: liner", "unknown method 'liner'. Did you mean 'linear'"),
    "a setting misspelt": ("method: ties\nbase: c\nsettings: {densitty: 0.5}", "no setting 'densitty'. Did you mean 'density'"),
    "a key misspelt": ("normalise: true", "normalise: unknown key"),
    "a dtype key misspelt": ("out_dtpye: float16", "unknown key. Did you mean 'out_dtype'"),
    "a density below zero": ("method: ties\nbase: c\nsettings: {density: -3}", "density must be a number from 0 to 1, found -3"),
    "a density of fifty": ("method: ties\nbase: c\nsettings: {density: 50}", "density must be a number from 0 to 1, found 50"),
    "weights of zero": ("settings: {weights: [0, 0]}", "sum to 0 and cannot be normalised"),
    "no base": ("method: task_arithmetic", "merges task vectors and needs a base"),
    "a base for nothing": ("base: c", "method linear uses no base"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_recipe_stops_before_a_model_is_looked_at(case: str, tmp_path: Path) -> None:
    """The models it names do not exist; the message is of the recipe, with line and column, all the same."""
    text, expected = WRONG[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(f"models: [a, b]\n{text}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"{path}:")


def test_layers_that_do_not_exist_stop_before_a_weight_is_read(tmp_path: Path) -> None:
    a, b = (save_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    wrong = recipe(a, b, output=tmp_path / "out", slices=[{"layers": "0-4"}])
    with pytest.raises(UsageError, match="4"):
        run(wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_fewer_layers_are_said_in_the_config_of_every_family(tmp_path: Path) -> None:
    """An ELECTRA of two layers whose config says four gets two random ones when it is loaded."""
    sizes = {**ELECTRA, "num_hidden_layers": 4}
    a, b = (made(tmp_path / name, "ElectraForPreTraining", "electra", sizes, seed) for seed, name in enumerate("ab"))
    run(recipe(a, b, output=tmp_path / "out", slices=[{"layers": "0-1"}, {"layers": "3"}]))
    model, info = transformers.ElectraForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert model.config.num_hidden_layers == len(model.electra.encoder.layer) == 3
    assert not info["missing_keys"]
    left, right = (load_file(folder / "model.safetensors") for folder in (a, b))
    name = "electra.encoder.layer.{}.output.dense.weight"
    found = model.state_dict()[name.format(2)]
    assert torch.allclose(found, (left[name.format(3)] + right[name.format(3)]) / 2, atol=1e-6)


def test_a_model_merged_with_itself_is_itself(tmp_path: Path) -> None:
    """Not a fault of the recipe: it is how one checks a tool."""
    a = save_checkpoint(tmp_path / "a")
    run(recipe(a, a, output=tmp_path / "out"))
    left, merged = load_file(a / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(left[n], merged[n]) for n in left)


def test_a_pooler_that_one_model_lacks_is_said(tmp_path: Path) -> None:
    a, b = (save_checkpoint(tmp_path / name, bert_config("BertModel"), seed=seed) for seed, name in enumerate("ab"))
    tensors = {n: t for n, t in load_file(b / "model.safetensors").items() if not n.startswith("pooler")}
    save_file(tensors, b / "model.safetensors", {"format": "pt"})
    with pytest.raises(MismatchError, match=r"b lacks bert\.pooler\.dense\.bias; bert\.pooler\.dense\.weight that"):
        run(recipe(a, b, output=tmp_path / "out"))


def test_no_shard_of_an_earlier_run_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that finds an index beside model.safetensors may read the wrong one."""
    a, b = (save_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    with monkeypatch.context() as small:
        small.setattr(merge.checkpoints.weights.write, "MAX_SHARD_SIZE", 9000)
        run(recipe(a, b, output=tmp_path / "out"))
    sharded = {path.name for path in (tmp_path / "out").glob("model*")}
    assert len(sharded) > 3
    first = open_checkpoint(str(tmp_path / "out")).state_dict()
    run(recipe(a, b, output=tmp_path / "out"), force=True)
    assert {path.name for path in (tmp_path / "out").glob("model*")} == {"model.safetensors"}
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_folder_of_the_form_org_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, and without asking for one."""
    for seed, name in enumerate("ab"):
        save_checkpoint(tmp_path / "dir" / name, seed=seed)
    monkeypatch.chdir(tmp_path)
    run(make_recipe({"models": ["dir/a", "dir/b"], "output": "dir/out"}))
    facts = json.loads(Path("dir/out/merge.json").read_text(encoding="utf-8"))
    assert [model["source"] for model in facts["models"]] == ["dir/a", "dir/b"]
    assert "base_model" not in Path("dir/out/README.md").read_text(encoding="utf-8").split("---")[1]


@pytest.mark.slow
def test_config_and_labels_are_the_first_models_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of whichever a set of names lists first: here, and where a set has another order."""
    monkeypatch.chdir(tmp_path)
    other = bert_config(labels=("contradiction", "neutral", "entailment"))
    save_checkpoint(tmp_path / "a")
    save_checkpoint(tmp_path / "b", other, seed=1)
    code = (
        "from merge.recipe.recipe import make_recipe; from merge.run.run import run; import sys;"
        "run(make_recipe({'models': ['b', 'a'], 'output': sys.argv[1]}))"
    )
    run(make_recipe({"models": ["b", "a"], "output": "here"}))
    done = warm.run([sys.executable, "-c", code, "there"])  # sets have another order there
    assert done.returncode == 0, done.stderr
    for name in ("config.json", "model.safetensors"):
        assert Path("here", name).read_bytes() == Path("there", name).read_bytes()
    labels = json.loads(Path("here", "config.json").read_text(encoding="utf-8"))["id2label"]
    assert labels == {"0": "contradiction", "1": "neutral", "2": "entailment"}


ANY_ORDER = {
    "linear": {}, "ties": {"base": "base"}, "dare_ties": {"base": "base"}, "dare_linear": {"base": "base"},
    "della": {"base": "base"}, "breadcrumbs": {"base": "base"}, "sce": {"base": "base"}, "model_stock": {"base": "base"},
    "karcher": {}, "multislerp": {}, "magmax": {"base": "base"}, "consensus": {"base": "base"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", ANY_ORDER)
def test_order_threads_and_shards_leave_every_byte_as_it_is(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random masks too: they belong to the model and the tensor, not to the turn in which they are drawn."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b", "c")):
        save_checkpoint(Path(name), seed=seed)
    transformers.AutoModelForSequenceClassification.from_pretrained("b").save_pretrained("b2", max_shard_size="9KB")
    shutil.copy("b/config.json", "b2/config.json")
    for path in Path("b").glob("*token*"):
        shutil.copy(path, "b2")
    assert len(list(Path("b2").glob("*.safetensors"))) > 3
    written = []
    for number, models in enumerate((["a", "b", "c"], ["c", "a", "b"], ["b2", "c", "a"])):
        made = make_recipe({"models": models, "method": method, "output": f"out{number}", **ANY_ORDER[method]})
        run(made)
        written.append(load_file(f"out{number}/model.safetensors"))
    for other in written[1:]:
        assert all(torch.equal(written[0][n], other[n]) for n in written[0])


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of the weights, from a thread."""
    a, b = (save_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    whole, calls = WeightFile.write, []

    def full(file: WeightFile, data: memoryview, offset: int) -> None:
        calls.append(offset)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        whole(file, data, offset)

    monkeypatch.setattr(WeightFile, "write", full)
    with pytest.raises(OutputError, match="no space left on the disk of .*; nothing was written"):
        run(recipe(a, b, output=tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_every_fault_of_several_models_is_said_at_once(tmp_path: Path) -> None:
    """Not one a run, after a download each."""
    a = save_checkpoint(tmp_path / "a")
    b = save_checkpoint(tmp_path / "b", bert_config(hidden_size=36))
    c = save_checkpoint(tmp_path / "c", bert_config(labels=("yes", "no", "perhaps")))
    with pytest.raises(MergeError) as caught:
        run(recipe(a, b, c, output=tmp_path / "out"))
    said = str(caught.value)
    assert "hidden_size is 24" in said
    assert "yes, no, perhaps" in said


def test_random_tensors_are_not_all_alike() -> None:
    """Negative control of this file: the tiny models differ in every tensor."""
    first, second = (random_tensors(bert_config(), seed) for seed in (0, 1))
    assert not any(torch.equal(first[name], second[name]) for name in first)
