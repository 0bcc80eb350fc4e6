"""Adapters, quantized weights, pointers and folders around a checkpoint: each is one line that says what to do."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import bert_config, save_checkpoint
from torch import Tensor

from merge.checkpoints.model_set import ModelSet, same_weights
from merge.checkpoints.open import open_base, open_checkpoint
from merge.errors import CheckpointError, MismatchError, UsageError
from merge.methods import make_method
from merge.recipe.recipe import make_recipe
from merge.run.report import Report
from merge.run.run import run

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
LORA = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 2, "target_modules": ["query"]}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 437951328\n"


def merged(output: Path, *models: Path, **more: Any) -> Report:
    return run(make_recipe({"models": [str(m) for m in models], "output": str(output), **more}))


def refusal(source: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(source))
    message = str(caught.value)
    assert "\n" not in message
    assert str(source) in message
    return message


def config_of(folder: Path, **changes: Any) -> None:
    """Change config.json; None takes a key away."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not None}), encoding="utf-8"
    )


@pytest.mark.parametrize("kind", ["LORA", "IA3", "PROMPT_TUNING", "ADALORA"])
def test_an_adapter_beside_a_model_is_refused_with_the_way_to_fold_it(kind: str, tmp_path: Path) -> None:
    """transformers would add it or not, by whether peft is installed: neither is what the folder's weights say."""
    folder = save_checkpoint(tmp_path / "a")
    (folder / "adapter_config.json").write_text(json.dumps(LORA | {"peft_type": kind}), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    message = refusal(folder)
    assert f"a {kind} adapter (adapter_config.json, adapter_model.safetensors) beside its weights" in message
    assert "merge_and_unload()" in message


@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_of_another_library_is_not_sent_to_peft(alone: bool, tmp_path: Path) -> None:
    """Folders of the adapters library have an adapter_config.json too, which names no kind that peft knows."""
    folder = tmp_path / "a"
    folder.mkdir()
    if not alone:
        save_checkpoint(folder)
    stated = {"config": {"architecture": "pfeiffer"}, "model_class": "BertAdapterModel", "model_type": "bert"}
    (folder / "adapter_config.json").write_text(json.dumps(stated), encoding="utf-8")
    message = refusal(folder)
    assert "another library than peft" in message
    assert "merge_and_unload" not in message


def test_an_adapter_alone_is_named_as_such(tmp_path: Path) -> None:
    """Also with the config.json that some trainers leave beside it."""
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(LORA), encoding="utf-8")
    for config in (False, True):
        if config:
            (folder / "config.json").write_text(json.dumps(bert_config()), encoding="utf-8")
        message = refusal(folder)
        assert "is a LORA adapter alone" in message
        assert "'org/base'" in message
        assert "merge_and_unload()" in message


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.bert.pooler.dense.weight", "bert.encoder.layer.0.attention.self.query.lora_A.default.weight",
        "bert.encoder.layer.0.attention.self.query.base_layer.weight", "classifier.modules_to_save.default.weight",
        "bert.encoder.layer.0.output.dense.ia3_l.default", "bert.embeddings.word_embeddings.lora_embedding_A.default",
    ],
)  # fmt: skip
def test_weights_saved_with_an_adapter_inside_are_refused(name: str, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: torch.zeros(2)}, folder / "model.safetensors")
    message = refusal(folder)
    assert "hold 1 tensors of an adapter" in message
    assert name in message


@needs_peft
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, which reads a name that transformers renamed
@pytest.mark.slow
def test_the_advice_folds_an_adapter_of_peft_and_the_result_merges(tmp_path: Path) -> None:
    """Word for word: the folded model is that of peft, and its merge loads where peft is installed and where it is not."""
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model

    base, other = (save_checkpoint(tmp_path / name, seed=k) for k, name in enumerate(("base", "other")))
    kind = transformers.AutoModelForSequenceClassification
    wrapped = get_peft_model(
        kind.from_pretrained(base), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    )
    wrapped.save_pretrained(tmp_path / "lora")
    assert "is a LORA adapter alone" in refusal(tmp_path / "lora")
    assert str(base) in refusal(tmp_path / "lora")
    PeftModel.from_pretrained(kind.from_pretrained(base), str(tmp_path / "lora")).merge_and_unload().save_pretrained(
        tmp_path / "folded"
    )
    merged(tmp_path / "out", tmp_path / "folded", other)
    out, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "other"))
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.inference_mode():
        expected = wrapped.eval()(input_ids=ids).logits
        folded = kind.from_pretrained(tmp_path / "folded").eval()(input_ids=ids).logits
    assert torch.allclose(folded, expected, atol=1e-6)
    weights = load_file(tmp_path / "folded/model.safetensors")
    assert all(torch.allclose(out[n], (weights[n] + theirs[n]) / 2, atol=1e-6) for n in out)
    assert not list((tmp_path / "out").glob("adapter*"))


QUANTIZATION = [
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    {"quantization_config": {"quant_method": "fp8"}},
    {"compression_config": {"format": "pack-quantized"}},
]


@pytest.mark.parametrize("stated", QUANTIZATION)
def test_a_quantization_that_plain_weights_do_not_have_is_dropped_and_said(
    stated: dict[str, Any], tmp_path: Path
) -> None:
    """The merge equals that of the same folders without the entry, and loads."""
    a, b = (save_checkpoint(tmp_path / name, seed=k) for k, name in enumerate("ab"))
    config_of(a, **stated)
    report = merged(tmp_path / "out", a, b)
    key = next(iter(stated))
    assert (
        sum(f"{key} in config.json describes none of its weights, which are F32; left out" in n for n in report.notes)
        == 1
    )
    written = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert key not in written
    one, two, both = (load_file(f / "model.safetensors") for f in (a, b, tmp_path / "out"))
    assert all(torch.allclose(both[n], (one[n] + two[n]) / 2) for n in both)


def test_a_quantization_inside_the_config_of_a_part_is_dropped_too(tmp_path: Path) -> None:
    from families_more import CASES

    folder = save_checkpoint(tmp_path / "clip", CASES["CLIPModel"], tokenizer=False)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config_of(folder, text_config=config["text_config"] | {"quantization_config": {"quant_method": "awq"}})
    opened = open_checkpoint(str(folder))
    assert any("text_config.quantization_config" in note for note in opened.notes)
    assert "quantization_config" not in opened.config["text_config"]


QUERY = "bert.encoder.layer.0.attention.self.query"
PACKED: list[dict[str, Tensor]] = [
    {f"{QUERY}.weight": torch.zeros(288, 1, dtype=torch.uint8), f"{QUERY}.weight.absmax": torch.zeros(9),
     f"{QUERY}.weight.quant_state.bitsandbytes__nf4": torch.zeros(5, dtype=torch.uint8)},
    {f"{QUERY}.weight": torch.zeros(24, 24, dtype=torch.int8), f"{QUERY}.SCB": torch.zeros(24)},
    {f"{QUERY}.qweight": torch.zeros(3, 24, dtype=torch.int32), f"{QUERY}.scales": torch.zeros(1, 24)},
    {f"{QUERY}.weight": torch.zeros(24, 24).to(torch.float8_e4m3fn), f"{QUERY}.weight_scale_inv": torch.zeros(1, 1)},
    {f"{QUERY}.weight_packed": torch.zeros(24, 3, dtype=torch.int32), f"{QUERY}.weight_shape": torch.zeros(2).long()},
]  # fmt: skip


@pytest.mark.parametrize("packed", PACKED, ids=["4 bit", "8 bit", "gptq", "fp8", "compressed"])
@pytest.mark.parametrize("stated", [True, False])
def test_quantized_weights_are_refused_by_their_headers(
    packed: dict[str, Tensor], stated: bool, tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path / "a")
    tensors = {n: t for n, t in load_file(folder / "model.safetensors").items() if n != f"{QUERY}.weight"}
    save_file(tensors | packed, folder / "model.safetensors")
    if stated:
        config_of(folder, quantization_config={"quant_method": "fp8"})
    message = refusal(folder)
    assert f"is quantized{' (fp8)' if stated else ''}: {len(packed)} tensors" in message
    assert "model.dequantize()" in message


@pytest.mark.parametrize("form", ["parameters", "requires grad", "views"])
def test_pickled_parameters_that_require_grad_are_read_as_tensors(form: str, tmp_path: Path) -> None:
    """By a method that computes with torch, where the history of a gradient would be an error."""
    a, b, base = (save_checkpoint(tmp_path / name, seed=k) for k, name in enumerate(("a", "b", "base")))
    tensors = load_file(a / "model.safetensors")
    merged(tmp_path / "plain", a, b, base=str(base), method="ties", settings={"density": 0.5})
    stored = {
        name: torch.nn.Parameter(t)
        if form == "parameters"
        else t.requires_grad_()
        if form == "requires grad"
        else t.mul(1.0)
        for name, t in tensors.items()
    }
    torch.save({n: (2 * t) / 2 if form == "views" else t for n, t in stored.items()}, a / "pytorch_model.bin")
    (a / "model.safetensors").unlink()
    merged(tmp_path / "out", a, b, base=str(base), method="ties", settings={"density": 0.5})
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "out"))
    assert all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json", "shard"])
def test_a_pointer_of_git_lfs_is_named(file: str, tmp_path: Path) -> None:
    a, b = (save_checkpoint(tmp_path / name, seed=k) for k, name in enumerate("ab"))
    if file in ("pytorch_model.bin", "shard"):
        (a / "model.safetensors").unlink()
    if file == "shard":
        file = "model-00001-of-00001.safetensors"
        index = {"metadata": {}, "weight_map": {"classifier.bias": file}}
        (a / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (a / file).write_text(POINTER, encoding="utf-8")
    with pytest.raises((CheckpointError, MismatchError), match=r"is a Git LFS pointer.*git lfs pull") as caught:
        merged(tmp_path / "out", a, b)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_around_a_checkpoint_points_to_it(tmp_path: Path) -> None:
    """The first layout of sentence-transformers, and a trainer's output whose checkpoints are inside."""
    old = tmp_path / "old"
    save_checkpoint(old / "0_Transformer")
    (old / "modules.json").write_text("[]", encoding="utf-8")
    assert f"merge the encoders alone: {old}/0_Transformer" in refusal(old)
    trainer = tmp_path / "trainer"
    for step in (500, 1000, 9):
        save_checkpoint(trainer / f"checkpoint-{step}")
    assert f"{trainer}/checkpoint-1000" in refusal(trainer)
    save_checkpoint(tmp_path / "outer/model")
    assert f"Did you mean {tmp_path}/outer/model?" in refusal(tmp_path / "outer")
    (tmp_path / "empty").mkdir()
    assert "Expected a folder as save_pretrained writes" in refusal(tmp_path / "empty")


def test_padded_tables_of_one_tokenizer_name_the_option(tmp_path: Path) -> None:
    a = save_checkpoint(tmp_path / "a", bert_config(), seed=0)
    b = save_checkpoint(tmp_path / "b", bert_config(vocab_size=24), seed=1)
    with pytest.raises(MismatchError, match="--tokenizer reference keeps the rows of") as caught:
        merged(tmp_path / "out", a, b)
    assert "word_embeddings.weight is (18, 24)" in str(caught.value)
    merged(tmp_path / "out", a, b, tokenizer="reference")
    assert load_file(tmp_path / "out/model.safetensors")["bert.embeddings.word_embeddings.weight"].shape == (18, 24)


@pytest.mark.parametrize("architecture", ["BertModel", "BertForSequenceClassification"])
def test_a_base_that_names_no_class_is_read_as_its_familys(architecture: str, tmp_path: Path) -> None:
    """Its head is not asked for, and may be there or not; a model with a head has to name its class."""
    a, b = (save_checkpoint(tmp_path / name, seed=k) for k, name in enumerate("ab"))
    base = save_checkpoint(tmp_path / "base", bert_config(architecture), seed=2)
    more = {"method": "task_arithmetic", "base_lacks": "average"}
    config_of(base, architectures=None)
    report = merged(tmp_path / "out", a, b, base=str(base), **more)
    assert any("as the base it is read as BertModel" in note for note in report.notes)
    one, two, start, out = (load_file(f / "model.safetensors") for f in (a, b, base, tmp_path / "out"))
    encoder = {name: name if name in start else name.removeprefix("bert.") for name in out if name.startswith("bert.")}
    assert all(torch.allclose(out[n], one[n] + two[n] - start[stored], atol=1e-5) for n, stored in encoder.items())
    heads = one["classifier.weight"], two["classifier.weight"]
    expected = sum(heads) - start["classifier.weight"] if "classifier.weight" in start else sum(heads) / 2
    assert torch.allclose(out["classifier.weight"], expected, atol=1e-5)
    assert open_base(str(base)).architecture == "BertModel"
    if architecture != "BertModel":
        assert "must name one architecture" in refusal(base)


def test_the_same_model_in_two_folders_is_said_by_content(tmp_path: Path) -> None:
    """Also as a pickle and as the base; one entry that differs, which no sample sees, is another model."""
    a, b = (save_checkpoint(tmp_path / name, seed=0) for name in "ab")
    tensors = load_file(b / "model.safetensors")
    torch.save(tensors, b / "pytorch_model.bin")
    (b / "model.safetensors").unlink()
    config_of(b, hidden_dropout_prob=0.4)
    report = merged(tmp_path / "out", a, b)
    said = f"{b} holds the same weights as {a}, in every tensor: it only adds to that model's weight"
    assert said in report.notes
    twice = [open_checkpoint(str(folder)) for folder in (a, a, b)]
    assert len(same_weights(ModelSet(tuple(twice)))) == 2
    assert "is given twice" in same_weights(ModelSet(tuple(twice)))[0]
    based = same_weights(ModelSet((twice[0],), twice[2]))
    assert based == [
        f"{b} holds the same weights as {a}, in every tensor: as the base it gives that model no task vector"
    ]
    tensors["bert.embeddings.word_embeddings.weight"].view(-1)[1] += 1.0
    torch.save(tensors, b / "pytorch_model.bin")
    other = open_checkpoint(str(b))
    assert same_weights(ModelSet((twice[0], other))) == []


@pytest.mark.parametrize("method", ["nuslerp", "fisher", "karcher"])
def test_advice_names_no_setting_that_a_method_has_not(method: str) -> None:
    with pytest.raises(UsageError, match="sum to 0") as caught:
        make_method(method, {"weights": [1.0, -1.0]}, [None, None])
    assert "normalize" not in str(caught.value)


@pytest.mark.parametrize("method", ["linear", "ties", "multislerp"])
def test_advice_names_the_setting_of_methods_that_have_it(method: str) -> None:
    with pytest.raises(UsageError, match=r"Set normalize=false"):
        make_method(method, {"weights": [1.0, -1.0]}, [None, None])


@pytest.mark.parametrize(("kind", "count"), [("WordPiece", 1), ("BPE", 0), (None, 1)])
def test_the_note_on_word_pieces_is_for_word_pieces(kind: str | None, count: int, tmp_path: Path) -> None:
    """For folders whose tokenizers are known; where they are not, the note stays."""
    from merge.recipe.read import read_any

    for name in "ab":
        (tmp_path / name).mkdir()
        if kind:
            (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"type": kind}}), encoding="utf-8")
    models = "\n".join(f"- model: {tmp_path / name}\n  parameters: {{weight: 1}}" for name in "ab")
    (tmp_path / "m.yml").write_text(
        f"models:\n{models}\nmerge_method: linear\ndtype: float32\ntokenizer_source: union\n"
    )
    _, warnings = read_any(tmp_path / "m.yml")
    assert sum("WordPiece" in warning for warning in warnings) == count
