"""Pre-flight: what cannot be merged is found from headers, all of it at once, before a weight is read."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import SPECIAL, WORDS, bert_config, random_tensors, save_tokenizer

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.model_set import ModelSet
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.tokenizers.files import stated_ids
from merge.errors import MismatchError
from merge.run.plan.heads import plan_heads
from merge.run.plan.output_config import merged_config
from merge.run.plan.preflight import Allowed, preflight


def made(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, words: list[str] | None = None, **changes: Any
) -> Checkpoint:
    """Write and open a tiny checkpoint; `words` is its vocabulary, with a tokenizer."""
    config = bert_config(**changes)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(random_tensors(config, seed, dtype), folder / "model.safetensors")
    if words is not None:
        save_tokenizer(folder, words)
    return open_checkpoint(str(folder))


def faults(*checkpoints: Checkpoint, dtype: str | None = None, output: Path | None = None) -> list[str]:
    """Return the lines of the refusal; none if there is none."""
    try:
        preflight(plan_heads(None, ModelSet(checkpoints)), Allowed(dtype), output)
    except MismatchError as error:
        return str(error).splitlines()
    return []


def test_two_fine_tunes_of_one_model_pass_without_a_word(tmp_path: Path) -> None:
    """Negative control of everything below: other weights, dropout, cache and label order are no fault."""
    a = made(tmp_path / "a", 0, words=WORDS)
    b = made(
        tmp_path / "b", 1, words=WORDS, labels=("neutral", "entailment", "contradiction"), hidden_dropout_prob=0.3,
        use_cache=False, transformers_version="4.9.0", _name_or_path="elsewhere", problem_type="single_label_classification",
    )  # fmt: skip
    assert preflight(plan_heads(None, ModelSet((a, b)))) == ()


def test_two_architectures_are_one_fault(tmp_path: Path) -> None:
    """Nothing further is compared: everything else would differ too."""
    a, b = made(tmp_path / "a"), made(tmp_path / "b", architecture="BertForMaskedLM")
    found = faults(a, b)
    assert len(found) == 1
    assert "BertForSequenceClassification (bert)" in found[0]
    assert "BertForMaskedLM (bert)" in found[0]


def test_two_sizes_name_config_key_and_tensor(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a"), made(tmp_path / "b", intermediate_size=48)
    found = faults(a, b)
    assert any("intermediate_size is 40" in line and "48" in line for line in found)
    assert any("shapes differ: bert.encoder.layer.0.intermediate.dense.bias is (40,)" in line for line in found)


def test_another_number_of_layers_names_the_tensors_that_are_missing(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a"), made(tmp_path / "b", num_hidden_layers=3)
    assert any("has bert.encoder.layer.2" in line and "lacks" in line for line in faults(a, b))
    assert any(f"{a.source} lacks" in line or "lacks bert.encoder.layer.2" in line for line in faults(b, a))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads is 4"),
        ({"hidden_act": "relu"}, "hidden_act is 'gelu'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-12"),
        ({"pad_token_id": 1}, "pad_token_id is 0"),
        ({"is_decoder": True}, "is_decoder is False"),
    ],
)
def test_configs_that_compute_other_functions_of_equal_shapes_are_a_fault(
    change: Any, key: str, tmp_path: Path
) -> None:
    """Every shape is the same: only config.json tells."""
    a, b = made(tmp_path / "a"), made(tmp_path / "b", **change)
    assert a.shapes == b.shapes
    found = faults(a, b)
    assert len(found) == 1
    assert found[0].startswith(f"configs differ: {key}")


def test_a_default_stated_or_left_out_is_the_same(tmp_path: Path) -> None:
    """As is a key that transformers does not read, such as those of its own first years."""
    a = made(tmp_path / "a", output_past=True, directionality="bidi")
    b = made(tmp_path / "b", hidden_act="gelu", layer_norm_eps=1e-12)
    assert faults(a, b) == []


def test_dtypes_that_differ_need_a_word_from_the_user(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a"), made(tmp_path / "b", 1, dtype=torch.bfloat16)
    found = faults(a, b)
    assert len(found) == 1
    assert "dtypes differ in 41 tensors" in found[0]
    assert "--out-dtype float32" in found[0]
    assert faults(a, b, dtype="float32") == []


def test_two_vocabularies_are_a_fault_though_sizes_are_equal(tmp_path: Path) -> None:
    """Two words change places: rows of the embedding tables would be averaged across words."""
    swapped = [WORDS[1], WORDS[0], *WORDS[2:]]
    a, b = made(tmp_path / "a", words=WORDS), made(tmp_path / "b", words=swapped)
    found = faults(a, b)
    assert len(found) == 1
    assert "vocabularies differ: 2 entries" in found[0]
    assert faults(a, made(tmp_path / "c", words=WORDS)) == []


def test_a_word_more_is_counted_whichever_model_has_it(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a", words=WORDS), made(tmp_path / "b", words=[*WORDS, "more"])
    assert "vocabularies differ: 1 entries" in faults(a, b)[0]
    assert "vocabularies differ: 1 entries" in faults(b, a)[0]


def test_an_added_token_in_another_place_is_a_fault(tmp_path: Path) -> None:
    """Added tokens stand beside the vocabulary in tokenizer.json and take rows of the same table."""
    a, b = made(tmp_path / "a", words=WORDS[:-1]), made(tmp_path / "b", words=WORDS[:-1])
    for checkpoint, token in ((a, "<left>"), (b, "<right>")):
        path = checkpoint.folder / "tokenizer.json"
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored["added_tokens"].append({"id": 17, "content": token})
        path.write_text(json.dumps(stored), encoding="utf-8")
    assert "vocabularies differ: 2 entries" in faults(a, b)[0]


def test_lower_casing_in_one_model_alone_is_a_fault(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a", words=WORDS), made(tmp_path / "b", words=WORDS)
    path = b.folder / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["normalizer"]["lowercase"] = not stored["normalizer"]["lowercase"]
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert "tokenizers differ in their normalizer" in faults(a, b)[0]


def test_a_vocab_txt_equals_the_tokenizer_json_of_the_same_words(tmp_path: Path) -> None:
    """The slow tokenizer's file of one model, the fast one's of the other; a separator that Python takes for a line end."""
    words = [*WORDS[:-1], "\u2028"]
    a, b = made(tmp_path / "a", words=words), made(tmp_path / "b")
    (b.folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n", encoding="utf-8")
    b = open_checkpoint(str(b.folder))
    assert len(SPECIAL + words) == len(stated_ids(b.folder)["vocab.txt"])
    assert faults(a, b) == []
    (b.folder / "vocab.txt").write_text("\n".join([*SPECIAL, *reversed(words)]) + "\n", encoding="utf-8")
    assert "vocabularies differ" in faults(a, b)[0]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"model": 5}', '{"model": {"vocab": [3]}}', '{"model": {}, "added_tokens": [1]}']
)
def test_a_malformed_tokenizer_is_one_fault(text: str, tmp_path: Path) -> None:
    a, b, c = (made(tmp_path / name) for name in "abc")
    (b.folder / "tokenizer.json").write_text(text, encoding="utf-8")
    found = faults(a, b, c)
    assert len(found) == 1
    assert f"{b.folder}: tokenizer.json" in found[0]
    assert "is malformed" in found[0]


def test_a_model_without_tokenizer_is_noted(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a", words=WORDS), made(tmp_path / "b")
    assert preflight(plan_heads(None, ModelSet((a, b)))) == (
        f"no tokenizer in {b.source}: their vocabulary could not be compared",
    )
    assert preflight(plan_heads(None, ModelSet((b, b)))) == ()


def test_a_reference_without_tokenizer_gives_a_merge_without_one_and_that_is_noted(tmp_path: Path) -> None:
    """The control is the order above, in which the merge gets the tokenizer of a."""
    a, b = made(tmp_path / "a", words=WORDS), made(tmp_path / "b")
    assert any(
        note.startswith(f"the merge has no tokenizer, as {b.source} has none")
        for note in preflight(plan_heads(None, ModelSet((b, a))))
    )


def test_label_sets_that_differ_list_both_models(tmp_path: Path) -> None:
    """Of one size or of two: the shapes alone would not say what is wrong."""
    a, b = made(tmp_path / "a"), made(tmp_path / "b", labels=("entailment", "not_entailment"))
    c = made(tmp_path / "c", labels=("yes", "no", "perhaps"))
    for other, said in ((b, "entailment, not_entailment"), (c, "yes, no, perhaps")):
        lines = [line for line in faults(a, other) if line.startswith("label sets differ")]
        assert len(lines) == 1
        assert "entailment, neutral, contradiction" in lines[0]
        assert said in lines[0]


def test_all_faults_of_all_models_are_in_one_message(tmp_path: Path) -> None:
    """A user mends them at one go."""
    a = made(tmp_path / "a", words=WORDS)
    b = made(tmp_path / "b", words=WORDS[::-1], dtype=torch.float16, hidden_act="relu", labels=("yes", "no"))
    c = made(tmp_path / "c", architecture="BertModel")
    found = faults(a, b, c)
    for kind in (
        "configs differ",
        "label sets differ",
        "shapes differ",
        "dtypes differ",
        "vocabularies differ",
        "architectures differ",
    ):
        assert sum(line.startswith(kind) for line in found) == 1
    assert len(found) == 6


def test_a_dtype_that_cannot_be_averaged_is_a_fault(tmp_path: Path) -> None:
    """Eight-bit floats carry scales that are not here; integers pass through."""
    for name in "ab":
        checkpoint = made(tmp_path / name)
        tensors = {n: t.clone() for n, t in checkpoint.state_dict().items()}
        save_file(tensors | {"scaled": torch.ones(2, dtype=torch.float8_e4m3fn), "count": torch.ones(2).long()},
                  checkpoint.folder / "model.safetensors")  # fmt: skip
    found = faults(*(open_checkpoint(str(tmp_path / name)) for name in "ab"))
    assert len(found) == 2
    assert all("scaled stored as F8_E4M3, which cannot be merged" in line for line in found)


@pytest.mark.parametrize(("stored", "dtype", "size"), [
    (torch.float32, None, 4), (torch.float32, "float32", 4), (torch.float16, "float64", 8), (torch.float32, "bfloat16", 2),
])  # fmt: skip
def test_the_disk_must_hold_what_will_be_written(
    stored: torch.dtype, dtype: str | None, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte: as many as the elements take in the dtype that is written."""
    a = made(tmp_path / "a", dtype=stored)
    need = size * sum(tensor.numel() for tensor in a.state_dict().values())
    usage = namedtuple("usage", "total used free")
    for free, refused in ((need, False), (need - 1, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(0, 0, free))
        found = faults(a, a, dtype=dtype, output=tmp_path / "not" / "yet" / "there")
        expected = f"there has {free:,} bytes free, but this needs {need:,} bytes."
        assert [expected in line for line in found] == [True] * refused
    assert shutil.disk_usage(tmp_path).free == need - 1


def test_notes_of_every_model_are_passed_on(tmp_path: Path) -> None:
    a = made(tmp_path / "a")
    tensors = {n: t.clone() for n, t in a.state_dict().items()} | {"bert.embeddings.position_ids": torch.arange(32)}
    save_file(tensors, a.folder / "model.safetensors")
    b = made(tmp_path / "b")
    notes = preflight(plan_heads(None, ModelSet((open_checkpoint(str(a.folder)), b))))
    assert len(notes) == 1
    assert "position_ids" in notes[0]


@pytest.mark.parametrize(
    ("stated", "dtype", "expected"),
    [
        ({}, None, "float32"),
        ({"torch_dtype": "float16"}, None, "float32"),
        ({}, "bfloat16", "bfloat16"),
    ],
)
def test_the_written_config_states_the_dtype_that_is_written(
    stated: Any, dtype: str | None, expected: str, tmp_path: Path
) -> None:
    """A wrong one would make from_pretrained cast the merge in silence; all else stays."""
    a = made(tmp_path / "a", **stated)
    config = merged_config([a], dtype)
    assert config["dtype"] == expected
    assert "torch_dtype" not in config
    assert {k: v for k, v in config.items() if k != "dtype"} == {
        k: v for k, v in a.config.items() if k not in ("dtype", "torch_dtype")
    }


def test_mixed_dtypes_keep_what_the_reference_states(tmp_path: Path) -> None:
    a = made(tmp_path / "a", torch_dtype="float16")
    tensors = {n: t.half() if "LayerNorm" not in n else t.clone() for n, t in a.state_dict().items()}
    save_file(tensors, a.folder / "model.safetensors")
    assert merged_config([open_checkpoint(str(a.folder))], None)["dtype"] == "float16"


READING: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [
    ({"model_max_length": 16}, {"model_max_length": 24}, "(model_max_length) is 16 in {a}, 24 in {b}"),
    ({"model_max_length": 16}, {}, "(model_max_length) is 16 in {a}, 32 in {b}"),  # all positions of the model
    ({"model_max_length": 32}, {"model_max_length": 10**30}, None),
    ({"truncation_side": "left"}, {}, "truncation_side is 'left' in {a}, 'right' in {b}"),
    ({"padding_side": "left"}, {"padding_side": "right"}, None),  # masked, whatever the side
]


@pytest.mark.parametrize(("left", "right", "words"), READING)
def test_what_is_read_of_a_long_text_is_said_where_it_differs(
    left: dict[str, Any], right: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    models = [made(tmp_path / name, seed, words=WORDS) for seed, name in enumerate("ab")]
    for model, stated in zip(models, (left, right), strict=True):
        path = model.folder / "tokenizer_config.json"
        kept = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k != "model_max_length"}
        path.write_text(json.dumps(kept | stated), encoding="utf-8")
    notes = preflight(plan_heads(None, ModelSet(tuple(models))))
    sources = {name: model.source for name, model in zip("ab", models, strict=True)}
    assert [words.format(**sources) in note for note in notes] == [True] if words else notes == ()


def test_scores_of_several_labels_beside_scores_of_one_are_said(tmp_path: Path) -> None:
    """Pipelines take a sigmoid of the one and a softmax of the other; one of several classes is the default."""
    one, several = "single_label_classification", "multi_label_classification"
    a, b, c = (made(tmp_path / str(k), k, problem_type=kind) for k, kind in enumerate((one, several, None)))
    assert preflight(plan_heads(None, ModelSet((a, c)))) == ()
    (note,) = preflight(plan_heads(None, ModelSet((a, b))))
    assert f"problem_type is '{one}' in {a.source}, '{several}' in {b.source}" in note
