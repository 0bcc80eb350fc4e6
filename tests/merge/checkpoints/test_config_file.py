"""config.json: its numbers are compared with what the weights hold before a model is built, so nothing is built in vain."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import bert_config, save_checkpoint

from merge.checkpoints.config_file import check_sizes
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import meta_model
from merge.checkpoints.weights.read import StoredTensor
from merge.errors import CheckpointError

HUGE = (10**4, 10**6, 2**31 + 1, 2**63, 2**64, 10**30)
ENTRIES = (
    "num_hidden_layers", "num_labels", "max_position_embeddings", "hidden_size", "intermediate_size", "vocab_size",
    "num_attention_heads", "type_vocab_size",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("sizes") / "a", bert_config(), tokenizer=False)


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_size_that_the_weights_do_not_have_is_one_line_at_once(entry: str, value: int, model: Path) -> None:
    """A model of ten thousand layers takes a minute to build, and one of 2**64 labels all memory there is."""
    sound = (model / "config.json").read_text(encoding="utf-8")
    changed = json.loads(sound) | {entry: value}
    if entry == "num_labels":
        changed = {key: entry for key, entry in changed.items() if key not in ("id2label", "label2id")}
    begun = time.process_time()
    try:
        (model / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(str(model))
    finally:
        (model / "config.json").write_text(sound, encoding="utf-8")
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value)
    assert time.process_time() - begun < 5
    open_checkpoint(str(model))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_hidden_layers": 10**4}, r"num_hidden_layers: found 10000, but the weights hold 3 tensors"),
        ({"text_config": {"num_hidden_layers": 10**4}}, r"text_config\.num_hidden_layers: found 10000"),
        ({"n_layer": 500}, "n_layer: found 500"),
        ({"encoder_layers": 500}, "encoder_layers: found 500"),
        ({"num_labels": 2**64}, r"num_labels: found 1\.84e\+19, but no tensor of the weights has more than 1024 rows"),
        ({"n_positions": 10**6}, "n_positions: found 1000000, but the table of positions has 40 rows"),
        ({"d_model": 10**400}, "a number of over 300 digits"),
    ],
)
def test_the_message_names_entry_and_weights(config: dict[str, Any], words: str) -> None:
    shapes = {"wpe.weight": (40, 8), "a": (8, 8), "b": (8,)}
    stored = {name: StoredTensor("model.safetensors", name, shape, "F32", 0) for name, shape in shapes.items()}
    with pytest.raises(CheckpointError, match=words):
        check_sizes(config, stored, "a")


def test_sizes_of_real_models_pass() -> None:
    """The control: shared layers, rotary positions beyond every table, no limit on what is no size."""
    stored = {f"t{k}": StoredTensor("model.safetensors", f"t{k}", (30000, 128), "F32", 0) for k in range(25)}
    check_sizes({"num_hidden_layers": 24, "num_hidden_groups": 1, "vocab_size": 30000}, stored, "albert")
    check_sizes({"max_position_embeddings": 10485760, "rope_theta": 500000, "num_labels": 1000}, stored, "rotary")
    check_sizes({"total_flos": 10**25, "seed": 2**63, "transformers_weights": True}, stored, "trained")


def test_a_count_under_any_name_is_bounded_while_the_model_is_built() -> None:
    """Whatever an entry is called, the modules that it makes are counted."""
    config = bert_config(num_hidden_layers=200)
    with pytest.raises(
        CheckpointError, match="describes a model of over 2820 modules, but the weights hold 41 tensors"
    ):
        meta_model(config, 41)
    assert meta_model(bert_config(), 41).config.num_hidden_layers == 2


@pytest.mark.parametrize("value", [[], {"a": 1}, "x", True, "512", 512.0, 1.5])
def test_an_entry_of_the_tokenizer_of_another_type_is_one_line(value: Any, tmp_path: Path) -> None:
    """It decides how texts are cut, and would be compared with numbers."""
    folder = save_checkpoint(tmp_path / "a", bert_config())
    path = folder / "tokenizer_config.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(entries | {"model_max_length": 1e30}), encoding="utf-8")
    open_checkpoint(str(folder))
    path.write_text(json.dumps(entries | {"model_max_length": value}), encoding="utf-8")
    with pytest.raises(
        CheckpointError, match="tokenizer_config.json: model_max_length: expected a (whole )?number, found"
    ):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("value", [-1, 0, -(2**70)])
def test_a_longest_text_without_a_token_is_one_line(value: int, tmp_path: Path) -> None:
    """transformers hands it to code in Rust, which takes no number below zero; the control: one token is a length."""
    folder = save_checkpoint(tmp_path / "a", bert_config())
    path = folder / "tokenizer_config.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(entries | {"model_max_length": 1}), encoding="utf-8")
    open_checkpoint(str(folder))
    path.write_text(json.dumps(entries | {"model_max_length": value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"model_max_length: expected the tokens .*, 1 or more, found {value}"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("value", [{"": None}, {"text_config": 1}, {"": ["float32"]}])
def test_a_dtype_of_a_part_is_text(value: Any, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "a", bert_config(), tokenizer=False)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"dtype": {"": "float32"}}), encoding="utf-8")
    open_checkpoint(str(folder))  # the control
    path.write_text(json.dumps(config | {"dtype": value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json: dtype: '\w*': expected text, found"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_an_implementation_of_attention_is_not_asked_for(key: str, model: Path, tmp_path: Path) -> None:
    """Configs state the one of the machine they were trained on. The control: what torch alone has stays."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    for value, left_out in (("flash_attention_2", True), ("sdpa", False), ("eager", False)):
        folder = tmp_path / value
        shutil.copytree(model, folder)
        (folder / "config.json").write_text(json.dumps(config | {key: value}), encoding="utf-8")
        opened = open_checkpoint(str(folder))
        assert (key not in opened.config) is left_out
        assert any("asks for attention by" in note for note in opened.notes) is left_out


def test_a_folder_of_the_hubs_cache_names_its_snapshot(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "models--org--a" / "snapshots" / "abc")
    with pytest.raises(CheckpointError, match=r"Did you mean .*models--org--a/snapshots/abc\?$"):
        open_checkpoint(str(tmp_path / "models--org--a"))


def test_a_config_without_model_type_says_what_to_add_if_it_is_one(model: Path, tmp_path: Path) -> None:
    """Models of 2019 have none; configs of other libraries have neither classes nor heads, which is the control."""
    whole = json.loads((model / "config.json").read_text(encoding="utf-8"))
    for name, config, words in (
        ("old", {k: v for k, v in whole.items() if k != "model_type"}, 'Add its family, such as "model_type": "bert"'),
        ("timm", {"architecture": "vit_base_patch16_224"}, "This is not a transformers checkpoint"),
    ):
        shutil.copytree(model, tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(str(tmp_path / name))
