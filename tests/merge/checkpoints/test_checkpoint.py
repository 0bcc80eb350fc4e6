"""Opening a checkpoint: every way of storing the same model reads the same, and what cannot be read is one line."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import bert_config, random_tensors, save_checkpoint
from torch import Tensor

from merge.checkpoints.open import open_checkpoint, open_encoder
from merge.errors import CheckpointError
from merge.recipe.recipe import make_recipe
from merge.run.run import run

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
BINS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Path:
    """Write a config and tensors as they are, with no help from transformers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tensors is not None:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def halves(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    names = list(tensors)
    return tuple({name: tensors[name] for name in part} for part in (names[::2], names[1::2]))  # type: ignore[return-value]


def write_index(folder: Path, index: str, shards: tuple[str, ...], parts: tuple[dict[str, Tensor], ...]) -> None:
    placed = {name: shard for shard, part in zip(shards, parts, strict=True) for name in part}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": placed}), encoding="utf-8")


def same(read: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return read.keys() == expected.keys() and all(
        read[n].dtype == expected[n].dtype and torch.equal(read[n], expected[n]) for n in read
    )


CONFIG = bert_config()
TENSORS = random_tensors(CONFIG, 0, torch.float32)


def _single(folder: Path) -> None:
    save_file(TENSORS, folder / "model.safetensors")


def _sharded(folder: Path) -> None:
    parts = halves(TENSORS)
    for shard, part in zip(SHARDS, parts, strict=True):
        save_file(part, folder / shard)
    write_index(folder, "model.safetensors.index.json", SHARDS, parts)


def _bin(folder: Path) -> None:
    torch.save(TENSORS, folder / "pytorch_model.bin")


def _legacy_bin(folder: Path) -> None:
    torch.save(TENSORS, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def _sharded_bin(folder: Path) -> None:
    parts = halves(TENSORS)
    for shard, part in zip(BINS, parts, strict=True):
        torch.save(part, folder / shard)
    write_index(folder, "pytorch_model.bin.index.json", BINS, parts)


@pytest.mark.parametrize("store", [_single, _sharded, _bin, _legacy_bin, _sharded_bin])
def test_every_way_of_storing_reads_the_same(store: Callable[[Path], None], tmp_path: Path) -> None:
    """One file or shards, safetensors or pickle, zip or the pickle of before torch 1.6: the tensors are what was saved."""
    folder = write_folder(tmp_path / "m", CONFIG)
    store(folder)
    opened = open_checkpoint(str(folder))
    assert same(opened.state_dict(), TENSORS)
    assert opened.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert opened.left_behind == ()
    assert opened.notes == ()


def test_safetensors_are_read_before_pickles_and_a_whole_file_before_shards(tmp_path: Path) -> None:
    """The choice of from_pretrained: another would merge weights that the model, when loaded, does not have."""
    folder = write_folder(tmp_path / "m", CONFIG)
    _sharded(folder)
    torch.save({name: tensor + 1 for name, tensor in TENSORS.items()}, folder / "pytorch_model.bin")
    assert same(open_checkpoint(str(folder)).state_dict(), TENSORS)
    save_file({name: tensor + 2 for name, tensor in TENSORS.items()}, folder / "model.safetensors")
    opened = open_checkpoint(str(folder))
    assert same(opened.state_dict(), {name: tensor + 2 for name, tensor in TENSORS.items()})
    assert opened.left_behind == (*SHARDS, "model.safetensors.index.json", "pytorch_model.bin")


def test_gamma_and_beta_are_read_as_weight_and_bias_and_said(tmp_path: Path) -> None:
    """What TensorFlow called them is what the oldest BERT files hold."""
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in TENSORS.items()
    }
    renamed = len(old.keys() - TENSORS.keys())
    opened = open_checkpoint(str(write_folder(tmp_path / "m", CONFIG, old)))
    assert renamed == 10
    assert same(opened.state_dict(), TENSORS)
    assert any(f"{renamed} tensors with the old names gamma and beta" in note for note in opened.notes)


@pytest.mark.parametrize("prefixed", [False, True])
def test_a_base_model_reads_the_same_with_and_without_its_prefix(prefixed: bool, tmp_path: Path) -> None:
    """BertModel is written without `bert.`; cut out of a file with a head it has one. Both are written without."""
    config = bert_config("BertModel")
    bare = random_tensors(config, 0, torch.float32)
    canonical = {f"bert.{name}": tensor for name, tensor in bare.items()}
    opened = open_checkpoint(str(write_folder(tmp_path / "m", config, canonical if prefixed else bare)))
    assert same(opened.state_dict(), canonical)
    assert {opened.written_name(name) for name in opened.tensors} == bare.keys()


def test_a_model_with_a_head_gets_the_prefix_its_file_lacks(tmp_path: Path) -> None:
    """from_pretrained takes such a file too; the classifier, outside the base model, gets none."""
    bare = {name.removeprefix("bert."): tensor for name, tensor in TENSORS.items()}
    opened = open_checkpoint(str(write_folder(tmp_path / "m", CONFIG, bare)))
    assert same(opened.state_dict(), TENSORS)
    assert {opened.written_name(name) for name in opened.tensors} == TENSORS.keys()


def test_a_head_whose_class_has_no_for_in_its_name_keeps_the_prefix(tmp_path: Path) -> None:
    """Whether a class writes the prefix is read off its own tensors: BertLMHeadModel does."""
    config = bert_config("BertLMHeadModel", is_decoder=True)
    tensors = random_tensors(config, 0, torch.float32)
    opened = open_checkpoint(str(write_folder(tmp_path / "m", config, tensors)))
    assert {opened.written_name(name) for name in opened.tensors} == tensors.keys()
    assert any(name.startswith("bert.") for name in tensors)


def masked_lm(**changes: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = bert_config("BertForMaskedLM", **changes)
    return config, random_tensors(config, 0, torch.float32)


TWIN, SOURCE = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"


def test_a_tied_twin_that_is_equal_is_kept_once_and_said(tmp_path: Path) -> None:
    """Old files hold the output embedding twice; moved and merged twice it could come apart."""
    config, tensors = masked_lm()
    assert TWIN not in tensors
    stored = tensors | {
        TWIN: tensors[SOURCE].clone(),
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone(),
    }
    opened = open_checkpoint(str(write_folder(tmp_path / "m", config, stored)))
    assert same(opened.state_dict(), tensors)
    assert sum("(tied); kept once" in note for note in opened.notes) == 2


def test_a_tied_twin_of_another_dtype_with_the_same_numbers_is_no_difference(tmp_path: Path) -> None:
    config, tensors = masked_lm()
    folder = write_folder(tmp_path / "m", config, tensors | {TWIN: tensors[SOURCE].double()})
    assert TWIN not in open_checkpoint(str(folder)).tensors


@pytest.mark.parametrize("change", [lambda t: t + 1e-6, lambda t: -t])
def test_a_tied_twin_that_differs_is_an_error(change: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    """Which of the two the user means cannot be known."""
    config, tensors = masked_lm()
    folder = write_folder(tmp_path / "m", config, tensors | {TWIN: change(tensors[SOURCE])})
    with pytest.raises(CheckpointError, match=f"{TWIN} and {SOURCE} differ, but config.json ties them"):
        open_checkpoint(str(folder))


def test_untied_twins_are_two_tensors(tmp_path: Path) -> None:
    """Negative control: it is the config that ties, not the name."""
    config, tensors = masked_lm(tie_word_embeddings=False)
    assert not torch.equal(tensors[TWIN], tensors[SOURCE])
    opened = open_checkpoint(str(write_folder(tmp_path / "m", config, tensors)))
    assert same(opened.state_dict(), tensors)


def test_a_twin_stored_alone_is_read_under_its_source(tmp_path: Path) -> None:
    config, tensors = masked_lm()
    stored = {TWIN if name == SOURCE else name: tensor for name, tensor in tensors.items()}
    assert same(open_checkpoint(str(write_folder(tmp_path / "m", config, stored))).state_dict(), tensors)


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_a_position_ids_buffer_is_left_out_and_said(prefix: str, tmp_path: Path) -> None:
    """Files of before transformers 4.31 hold 0, 1, 2, ...; it is no weight."""
    bare = {f"{prefix}{name.removeprefix('bert.')}" if "bert." in name else name: t for name, t in TENSORS.items()}
    stored = bare | {f"{prefix}embeddings.position_ids": torch.arange(32).unsqueeze(0)}
    opened = open_checkpoint(str(write_folder(tmp_path / "m", CONFIG, stored)))
    assert same(opened.state_dict(), TENSORS)
    assert any("position_ids" in note for note in opened.notes)


def test_position_ids_of_its_own_are_an_error(tmp_path: Path) -> None:
    stored = TENSORS | {"bert.embeddings.position_ids": torch.arange(32).flip(0)}
    with pytest.raises(CheckpointError, match="positions of its own cannot be kept"):
        open_checkpoint(str(write_folder(tmp_path / "m", CONFIG, stored)))


@pytest.mark.parametrize(
    ("dtype", "letters"), [(torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float64, "F64")]
)
def test_the_stored_dtype_is_kept(dtype: torch.dtype, letters: str, tmp_path: Path) -> None:
    """Nothing is cast in silence; sizes on disk follow from the header alone."""
    tensors = random_tensors(CONFIG, 0, dtype)
    opened = open_checkpoint(str(write_folder(tmp_path / "m", CONFIG, tensors)))
    assert same(opened.state_dict(), tensors)
    assert {stored.dtype for stored in opened.tensors.values()} == {letters}
    assert all(opened.tensors[name].nbytes == tensors[name].nbytes for name in tensors)


def test_tensors_without_axes_empty_ones_and_integers_are_read(tmp_path: Path) -> None:
    """Tensors that the class does not know are carried, whatever their form."""
    odd = {
        "scale": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
        "count": torch.tensor([1, 2]),
        "mask": torch.tensor([True]),
    }
    opened = open_checkpoint(str(write_folder(tmp_path / "m", CONFIG, TENSORS | odd)))
    assert opened.extra.keys() == odd.keys()
    opened = opened.with_extra()
    assert opened.extra == {}
    assert same({name: opened.tensor(name) for name in odd}, odd)
    assert {name: opened.tensors[name].is_integer for name in odd} == {
        "scale": False, "none": False, "count": True, "mask": True,
    }  # fmt: skip
    assert [opened.tensors[name].nbytes for name in odd] == [4, 0, 16, 1]


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    """The data part may be anything of the right length: it is looked at when a tensor is asked for."""
    folder = write_folder(tmp_path / "m", CONFIG, TENSORS)
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    path.write_bytes(raw[:start] + b"\xff" * (len(raw) - start))
    opened = open_checkpoint(str(folder))
    assert opened.shapes["classifier.weight"] == (3, 24)
    assert opened.tensor("classifier.weight").isnan().all()


def test_a_config_is_completed_with_the_defaults_it_leaves_out(tmp_path: Path) -> None:
    """A hand-written config may state only what differs from BERT base; what reads it needs the numbers all the same."""
    config = {key: value for key, value in CONFIG.items() if key not in ("type_vocab_size", "hidden_dropout_prob")}
    opened = open_checkpoint(str(write_folder(tmp_path / "m", config, TENSORS)))
    assert opened.config["type_vocab_size"] == 2
    assert opened.config["hidden_act"] == "gelu"
    assert {key: opened.config[key] for key in config} == config


def test_side_files_go_along_and_training_state_is_left_behind(tmp_path: Path) -> None:
    """A tokenizer and sentence-transformers' modules make the model usable; optimizer state and other copies do not."""
    folder = write_folder(tmp_path / "m", CONFIG, TENSORS)
    go = ["1_Pooling/config.json", "LICENSE", "modules.json", "tokenizer.json", "vocab.txt"]
    stay = [
        "checkpoint-500/config.json", "events.out.tfevents.1", "flax_model.msgpack", "onnx/model.onnx", "optimizer.pt",
        "permutation.safetensors", "pytorch_model.bin", "rng_state_0.pth", "runs/a/log.txt", "tf_model.h5",
        "trainer_state.json", "training_args.bin",
    ]  # fmt: skip
    for name in [*go, *stay, ".gitattributes", ".cache/x", "README.md"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x", encoding="utf-8")
    opened = open_encoder(str(folder))
    assert list(opened.side_files) == go
    assert list(opened.left_behind) == stay
    assert opened.has_tokenizer


def test_content_hash_is_stable_and_sensitive(tmp_path: Path) -> None:
    """It decides whether two results are of one model: where the folder lies does not count, one bit of a weight does."""
    hashes = []
    for k, (config, tensors) in enumerate(
        [
            (CONFIG, TENSORS),
            (CONFIG, TENSORS),
            (CONFIG, TENSORS | {"classifier.bias": TENSORS["classifier.bias"].nextafter(torch.tensor(9.0))}),
            (CONFIG | {"layer_norm_eps": 1e-5}, TENSORS),
        ]
    ):
        folder = write_folder(tmp_path / str(k), config, tensors)
        hashes.append(open_checkpoint(str(folder)).content_hash)
    (tmp_path / "1" / "notes.txt").write_text("of no consequence", encoding="utf-8")
    assert open_checkpoint(str(tmp_path / "1")).content_hash == hashes[0] == hashes[1]
    (tmp_path / "1" / "vocab.txt").write_text("a", encoding="utf-8")
    changed = open_checkpoint(str(tmp_path / "1")).content_hash
    assert len({hashes[0], hashes[2], hashes[3], changed}) == 4


def refusal(source: Path | str, revision: str | None = None) -> str:
    """Return the message of the refusal, which is one line."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(source), revision)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x", encoding="utf-8")
    assert "no such folder, and not a Hub id" in refusal(tmp_path / "absent")
    assert "is a file; expected a checkpoint folder" in refusal(file)
    assert "not a path that can be read" in refusal("x" * 5000)
    assert "not a path that can be read" in refusal("~nobody-of-that-name/m")
    assert "is a local folder, which has no revision 'main'" in refusal(tmp_path, "main")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "it has no config.json"),
        ("{", "config.json cannot be read"),
        ("\xff\xfe", "config.json cannot be read"),
        ("[" * 100_000, "config.json cannot be read"),
        ("[]", "a JSON object was expected, found a list"),
        ("{}", "names no model_type"),
        (json.dumps(CONFIG | {"model_type": "brt"}), "no model_type 'brt' (in config.json). Did you mean 'bert'"),
        (json.dumps(CONFIG | {"model_type": ["bert"]}), "config.json: model_type: expected text, found a list"),
        (json.dumps(CONFIG | {"architectures": []}), "must name one architecture, found []"),
        (json.dumps(CONFIG | {"architectures": [5]}), "must name one architecture, found [5]"),
        (json.dumps(CONFIG | {"architectures": ["BertModle"]}), "no model class 'BertModle'. Did you mean 'BertModel'"),
        (json.dumps(CONFIG | {"architectures": ["BertConfig"]}), "no model class 'BertConfig'"),
        (json.dumps(CONFIG | {"architectures": ["GPT2Model"]}), "GPT2Model cannot be built from config.json"),
        (json.dumps(CONFIG | {"hidden_size": "24"}), 'config.json: hidden_size: expected a whole number, found "24"'),
        (json.dumps(CONFIG | {"hidden_size": 25}), "is not a multiple of the number of attention heads"),
        (json.dumps(CONFIG | {"hidden_act": "gelou"}), "cannot be built from config.json (KeyError: 'gelou')"),
        (json.dumps(CONFIG | {"hidden_size": 48}), "are not of the sizes that config.json states"),
        (
            json.dumps(CONFIG | {"id2label": {"0": "yes", "1": "no"}}),
            "classifier.weight is (3, 24), by config.json (2, 24)",
        ),
    ],
)
def test_a_bad_config_is_refused_with_what_is_wrong(text: str | None, expected: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", CONFIG, TENSORS)
    assert open_checkpoint(str(folder)).architecture == CONFIG["architectures"][0]
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert expected in refusal(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", CONFIG)
    assert refusal(folder).endswith(
        "holds no weights: expected model.safetensors, its index with shards, or pytorch_model.bin."
    )
    (folder / "onnx").mkdir()
    for name in ("tf_model.h5", "onnx/model.onnx", "notes.txt"):
        (folder / name).write_bytes(b"x")
    assert refusal(folder).endswith("or pytorch_model.bin, found onnx/model.onnx, tf_model.h5.")
    assert "holds no tensor" in refusal(write_folder(tmp_path / "e", CONFIG, {}))


def _truncated(raw: bytes) -> bytes:
    return raw[:-100]


def _without_end(raw: bytes) -> bytes:
    return raw[:50]


def _not_json(raw: bytes) -> bytes:
    return raw[:9] + b"\x00" * 40 + raw[49:]


def _huge_header(raw: bytes) -> bytes:
    return b"\xff" * 8 + raw[8:]


def _wrong_shape(raw: bytes) -> bytes:
    return raw.replace(b'"shape":[3,24]', b'"shape":[3,25]')


@pytest.mark.parametrize("damage", [_truncated, _without_end, _not_json, _huge_header, _wrong_shape, lambda raw: b""])
def test_a_damaged_safetensors_file_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = write_folder(tmp_path / "m", CONFIG, TENSORS) / "model.safetensors"
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    assert "cannot be read as safetensors" in refusal(path.parent)


def test_a_missing_shard_and_a_bad_index_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", CONFIG)
    _sharded(folder)
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text(encoding="utf-8"))
    for text, expected in [
        ("{", "is malformed"),
        ("{}", "is malformed"),
        ('{"weight_map": ["a"]}', "is malformed"),
        ('{"weight_map": {"a": 5}}', "is malformed"),
        ('{"weight_map": {"a": "../other.safetensors"}}', "names shards outside its folder"),
        (
            json.dumps({"weight_map": whole["weight_map"] | {"more": SHARDS[0]}}),
            "lacks 1 tensors that the index places",
        ),
        (
            json.dumps({"weight_map": whole["weight_map"] | {"classifier.weight": SHARDS[0]}}),
            "classifier.weight among them",
        ),
    ]:
        index.write_text(text, encoding="utf-8")
        assert expected in refusal(folder), text
    index.write_text(json.dumps(whole), encoding="utf-8")
    assert same(open_checkpoint(str(folder)).state_dict(), TENSORS)
    (folder / SHARDS[1]).unlink()
    assert f"lists 2 shards, missing {SHARDS[1]}" in refusal(folder)


def test_one_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", CONFIG)
    _sharded(folder)
    first, second = (load_file(folder / shard) for shard in SHARDS)
    name = next(iter(second))
    save_file(first | {name: second[name]}, folder / SHARDS[0])
    assert f"tensor {name} is in {SHARDS[0]} and again in {SHARDS[1]}" in refusal(folder)


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    """Which of them counts cannot be known, even if they are equal today."""
    name = "bert.pooler.dense.bias"
    stored = TENSORS | {name.removeprefix("bert."): TENSORS[name].clone()}
    assert f"mean the same tensor {name}" in refusal(write_folder(tmp_path / "m", CONFIG, stored))
    stored = TENSORS | {"bert.embeddings.LayerNorm.gamma": torch.ones(24)}
    assert "LayerNorm.gamma" in refusal(write_folder(tmp_path / "n", CONFIG, stored))


class Bomb:
    """Writes a file when it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_holds_code_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    folder, proof = write_folder(tmp_path / "m", CONFIG), tmp_path / "proof"
    path = folder / "pytorch_model.bin"
    torch.save(TENSORS | {"bomb": Bomb(proof)}, path, _use_new_zipfile_serialization=zipped)
    message = refusal(folder)
    assert "cannot be read as a weights-only PyTorch file" in message
    assert "weights_only=False" not in message
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # negative control: the file is what it seems


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"PK\x03\x04garbage", pickle.dumps([1, 2]), b"\x80\x02}q\x00X\x05"], ids=repr
)
def test_a_damaged_pickle_is_refused(content: bytes, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", CONFIG)
    (folder / "pytorch_model.bin").write_bytes(content)
    assert "pytorch_model.bin" in refusal(folder)


@pytest.mark.parametrize("content", [[1], {"model": {"a": torch.ones(1)}}, {5: torch.ones(1)}, torch.ones(1)])
def test_a_pickle_of_something_else_is_refused(content: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", CONFIG)
    torch.save(content, folder / "pytorch_model.bin")
    assert "expected a mapping of names to tensors" in refusal(folder)


def test_a_state_dict_inside_a_trainers_file_is_named(tmp_path: Path) -> None:
    """As training loops save it, beside the epoch. The advice is followed; an entry of numbers is the control."""
    folder = write_folder(tmp_path / "m", CONFIG)
    whole = {"epoch": 3, "metrics": {"loss": 0.5}, "state_dict": {name: t.clone() for name, t in TENSORS.items()}}
    torch.save(whole, folder / "pytorch_model.bin")
    assert refusal(folder).endswith("found epoch, metrics, state_dict. Save its entry state_dict alone.")
    torch.save(whole["state_dict"], folder / "pytorch_model.bin")
    assert open_checkpoint(str(folder)).architecture == CONFIG["architectures"][0]
    torch.save({"epoch": 3, "metrics": {"loss": 0.5}}, folder / "pytorch_model.bin")
    assert refusal(folder).endswith("found epoch, metrics.")


def test_a_dtype_that_safetensors_lacks_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", CONFIG)
    torch.save(TENSORS | {"z": torch.ones(1, dtype=torch.complex128)}, folder / "pytorch_model.bin")
    assert "z is torch.complex128" in refusal(folder)


def test_what_transformers_writes_is_read_as_it_was(tmp_path: Path) -> None:
    """The round trip through save_pretrained, which everything else here stands in for."""
    folder = save_checkpoint(tmp_path / "m", CONFIG, tensors=TENSORS)
    opened = open_checkpoint(str(folder))
    assert same(opened.state_dict(), TENSORS)
    assert opened.side_files == ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def last_rows_apart(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return a base and two models that differ in the last row of every matrix and nowhere else.

    Of every matrix whose last row is far behind the first 64 entries, which alone would be a poor sample.
    """
    config = bert_config()
    base, a = (random_tensors(config, seed, torch.float32) for seed in (9, 0))
    b = {name: tensor.clone() for name, tensor in a.items()}
    for tensor in b.values():
        if tensor.ndim == 2 and tensor.numel() > 64 + 2 * tensor.shape[1]:
            tensor[-1] += 1
    assert sum(not torch.equal(a[name], b[name]) for name in a) >= 12
    models = {"base": base, "a": a, "b": b}
    return tuple(save_checkpoint(tmp_path / name, config, tensors=t) for name, t in models.items())  # type: ignore[return-value]


def test_the_fingerprint_reads_the_last_rows_of_every_matrix(last_rows_apart: tuple[Path, Path, Path]) -> None:
    """Fine-tunes may share all rows but the last, such as embeddings of new words: they are two models all the same."""
    _, a, b = (open_checkpoint(str(folder)) for folder in last_rows_apart)
    assert a.fingerprint != b.fingerprint
    assert a.fingerprint == open_checkpoint(str(last_rows_apart[1])).fingerprint


def test_models_that_differ_in_last_rows_alone_draw_other_masks(
    last_rows_apart: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """DARE drops entries by chance, for each model by its fingerprint: one mask for both would drop the same twice."""
    base, a, b = last_rows_apart
    kept = []
    for model in (a, b):
        asked = {"models": [str(model)], "base": str(base), "method": "dare_linear", "output": str(tmp_path / "out")}
        run(make_recipe({**asked, "settings": {"density": 0.5}}), force=True)
        name = "bert.embeddings.word_embeddings.weight"
        left, whole = (open_checkpoint(str(folder)).tensor(name)[:-1] for folder in (tmp_path / "out", base))
        kept.append(left != whole)
    assert 0.3 < kept[0].float().mean() < 0.7
    assert 0.3 < (kept[0] == kept[1]).float().mean() < 0.7


def test_a_checkpoint_without_its_maps_reads_the_same_and_a_pickle_is_kept(tmp_path: Path) -> None:
    for store, kept in ((_sharded, 0), (_bin, 1)):
        folder = write_folder(tmp_path / store.__name__, CONFIG)
        store(folder)
        checkpoint = open_checkpoint(str(folder))
        name = min(checkpoint.tensors)
        tensor, array = checkpoint.tensor(name), checkpoint.array(name).copy()
        assert any(isinstance(key, tuple) for key in checkpoint._files)
        checkpoint.unmap()
        assert sum(isinstance(key, tuple) for key in checkpoint._files) == kept
        assert checkpoint.tensor(name).equal(tensor)
        assert (checkpoint.array(name) == array).all()
