"""What decides an embedding or a score is compared whatever its key, and the layouts of all versions mean the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentence import SIZE, needs_library, save_sentence, write_json
from tiny import bert_config, save_checkpoint

from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.sentence_transformers import differing_facts
from merge.errors import MismatchError
from merge.recipe.recipe import make_recipe
from merge.run.report import Report
from merge.run.run import run

TANH, RELU = "torch.nn.modules.activation.Tanh", "torch.nn.modules.activation.ReLU"
GENERAL = "config_sentence_transformers.json"
PYLATE = {
    "query_prefix": "[Q] ",
    "document_prefix": "[D] ",
    "query_length": 32,
    "document_length": 180,
    "attend_to_expansion_tokens": False,
    "do_query_expansion": True,
    "skiplist_words": [".", ","],
    "similarity_fn_name": "MaxSim",
    "model_type": "ColBERT",
}
# File -> what is stated in it by a; entry -> value of b.
DECIDING: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((GENERAL, PYLATE, {key: value}) for key, value in [
        ("query_prefix", "[unused0]"), ("document_prefix", ""), ("query_length", 48), ("document_length", 300),
        ("attend_to_expansion_tokens", True), ("do_query_expansion", False), ("skiplist_words", []),
        ("similarity_fn_name", "cosine"), ("model_type", "MultiVectorEncoder"), ("an_entry_of_tomorrow", 3),
    ]),
    *((GENERAL, {"prompts": {}}, {key: value}) for key, value in [
        ("truncate_dim", 8), ("prompts", {"query": "query: "}), ("default_prompt_name", "query"),
        ("similarity_fn_name", "dot"), ("max_active_dims", 64), ("keep_in_fp32_modules", ["classifier"]),
    ]),
    *(("1_Pooling/config.json", {"embedding_dimension": SIZE, "pooling_mode": "mean"}, {key: value}) for key, value in [
        ("pooling_mode", "cls"), ("include_prompt", False), ("pooling_mode", ["mean", "max"]), ("another", 1),
    ]),
    *(("2_Dense/config.json", {"in_features": SIZE, "out_features": 10, "activation_function": TANH}, {key: value})
      for key, value in [
          ("activation_function", RELU), ("activation_function", "own.Tanh"), ("module_input_name", "token_embeddings"),
          ("module_output_name", "scores"), ("use_residual", True), ("scale", 2.0)]),
    *(("sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False}, {key: value}) for key, value in [
        ("max_seq_length", 16), ("max_seq_length", None), ("do_lower_case", True), ("query_length", 32),
        ("document_length", 200), ("query_expansion", {"strategy": "fixed"}),
        ("processing_kwargs", {"text": {"padding": "max_length"}}),
    ]),
    ("1_Pooling/idf.json", {"the": 0.5}, {"the": 0.7}),
    ("1_Pooling/wordembedding_config.json", {"tokenizer_class": "a"}, {"tokenizer_class": "b"}),
]  # fmt: skip


def merged(output: Path, *models: Path, **more: Any) -> Report:
    return run(make_recipe({"models": [str(m) for m in models], "output": str(output), **more}))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("pair")
    return save_sentence(place / "a", seed=0), save_sentence(place / "b", seed=1)


@pytest.mark.parametrize(("file", "stated", "change"), DECIDING, ids=[f"{f} {c}" for f, _, c in DECIDING])
def test_every_entry_that_decides_an_output_is_compared(
    file: str, stated: dict[str, Any], change: dict[str, Any], pair: tuple[Path, Path]
) -> None:
    """Alike they are no difference, which is the negative control; with one entry changed, known or not, they are one."""
    for folder in pair:
        for path in (folder / "1_Pooling").glob("*"):
            path.unlink()
        write_json(folder / "1_Pooling/config.json", {"embedding_dimension": SIZE, "pooling_mode": "mean"})
        write_json(folder / "2_Dense/config.json", DECIDING[20][1])
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": 32})
        write_json(folder / GENERAL, {"prompts": {}})
        write_json(folder / file, stated)
    a, b = (open_checkpoint(str(folder)) for folder in pair)
    assert differing_facts(a, b) == []
    write_json(pair[1] / file, stated | change)
    differing = differing_facts(a, open_checkpoint(str(pair[1])))
    assert len(differing) == 1
    assert next(iter(change)) in differing[0]
    assert str(pair[0]) in differing[0]
    assert str(pair[1]) in differing[0]


@pytest.mark.parametrize(
    ("file", "stated", "change"),
    [
        (GENERAL, {}, {"__version__": {"sentence_transformers": "9.0"}}),
        (GENERAL, {}, {"prompts": {"query": "", "document": ""}, "default_prompt_name": None}),
        (GENERAL, {}, {"similarity_fn_name": "cosine", "truncate_dim": None, "model_type": "SentenceTransformer"}),
        ("1_Pooling/config.json", {"word_embedding_dimension": SIZE, "pooling_mode_mean_tokens": True},
         {"pooling_mode_cls_token": False, "pooling_mode_lasttoken": False, "include_prompt": True}),
        ("2_Dense/config.json", {"in_features": SIZE, "out_features": 10, "activation_function": TANH},
         {"bias": True, "module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}),
        ("2_Dense/config.json", {"in_features": SIZE, "out_features": 10, "activation_function": TANH},
         {"activation_function": "torch.nn.Tanh", "module_output_name": None, "use_residual": False}),
        ("sentence_bert_config.json", {"max_seq_length": 32}, {"max_seq_length": None}),  # all positions
        ("sentence_bert_config.json", {"max_seq_length": 32},
         {"do_lower_case": False, "unpad_inputs": True, "transformer_task": "feature-extraction"}),
    ],
)  # fmt: skip
def test_what_versions_write_otherwise_is_no_difference(
    file: str, stated: dict[str, Any], change: dict[str, Any], tmp_path: Path
) -> None:
    a, b = save_sentence(tmp_path / "a"), save_sentence(tmp_path / "b")
    write_json(a / file, stated)
    write_json(b / file, stated | change)
    assert differing_facts(*(open_checkpoint(str(folder)) for folder in (a, b))) == []


def splade(folder: Path, seed: int, **settings: Any) -> Path:
    save_checkpoint(folder, bert_config("BertForMaskedLM"), seed=seed)
    kinds = {
        "": "sentence_transformers.models.Transformer",
        "1_SpladePooling": "sentence_transformers.models.SpladePooling",
    }
    write_json(folder / "modules.json", [{"idx": i, "path": p, "type": kinds[p]} for i, p in enumerate(kinds)])
    write_json(folder / "1_SpladePooling/config.json", {"pooling_strategy": "max"} | settings)
    return folder


def test_a_size_that_follows_from_the_model_is_no_difference(tmp_path: Path) -> None:
    """SPLADE's dimension is that of the vocabulary, stated by one version, null in another, by its old name in a third."""
    stated = ({"embedding_dimension": None}, {"word_embedding_dimension": 18}, {"embedding_dimension": 18}, {})
    folders = [splade(tmp_path / str(k), k, **settings) for k, settings in enumerate(stated)]
    merged(tmp_path / "out", *folders)
    other = splade(tmp_path / "sum", 1, pooling_strategy="sum")
    with pytest.raises(MismatchError, match="pooling_strategy is 'max' in"):
        merged(tmp_path / "refused", folders[0], other)


def cross_encoder(folder: Path, seed: int, layout: str, activation: str = "Sigmoid", labels: int = 1) -> Path:
    """Write a cross-encoder as sentence-transformers 1, 2, 4 or 6 left it."""
    names = tuple(f"LABEL_{i}" for i in range(labels))
    save_checkpoint(folder, bert_config(labels=names), seed=seed)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    path = f"torch.nn.modules.{'linear' if activation == 'Identity' else 'activation'}.{activation}"
    if layout == "2":
        config["sbert_ce_default_activation_function"] = path
    if layout == "4":
        config["sentence_transformers"] = {"activation_fn": path, "version": "4.1.0"}
    if layout == "6":
        general = {"model_type": "CrossEncoder", "prompts": {}, "default_prompt_name": None, "activation_fn": path}
        write_json(folder / GENERAL, general | {"__version__": {"sentence_transformers": "6.0.0"}})
        kind = "sentence_transformers.base.modules.transformer.Transformer"
        write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
        reading = {"transformer_task": "sequence-classification", "module_output_name": "scores"}
        reading["modality_config"] = {"text": {"method": "forward", "method_output_name": "logits"}}  # type: ignore[assignment]
        write_json(folder / "sentence_bert_config.json", reading)
    write_json(folder / "config.json", config)
    return folder


@pytest.mark.parametrize("layouts", [(a, b) for a in "1246" for b in "1246" if a < b or (a, b) == ("6", "2")])
def test_cross_encoders_of_two_layouts_merge_with_both_heads(layouts: tuple[str, str], tmp_path: Path) -> None:
    """Also in the direction that keeps the old files; the result is a cross-encoder of the first model's layout."""
    a, b = (
        cross_encoder(tmp_path / name, k, layout) for k, (name, layout) in enumerate(zip("ab", layouts, strict=True))
    )
    report = merged(tmp_path / "out", a, b)
    one, two, both = (load_file(folder / "model.safetensors") for folder in (a, b, tmp_path / "out"))
    assert torch.allclose(both["classifier.weight"], (one["classifier.weight"] + two["classifier.weight"]) / 2)
    assert not any("modules.json" in note for note in report.notes)
    assert (tmp_path / "out/modules.json").exists() == (layouts[0] == "6")


@pytest.mark.parametrize("layouts", [("4", "6"), ("1", "6"), ("2", "4"), ("1", "2")])
def test_another_activation_is_refused_in_every_layout_by_advice_that_keeps_both_heads(
    layouts: tuple[str, str], tmp_path: Path
) -> None:
    a = cross_encoder(tmp_path / "a", 0, layouts[0])
    b = cross_encoder(tmp_path / "b", 1, layouts[1], "Identity")
    with pytest.raises(MismatchError, match="activation_fn is 'Sigmoid' in") as caught:
        merged(tmp_path / "out", a, b)
    assert "--config reference" in str(caught.value)
    assert "--heads" not in str(caught.value)
    report = merged(tmp_path / "out", a, b, config="reference")
    assert any("activation_fn is 'Sigmoid' in" in note and "is kept" in note for note in report.notes)
    one, two, both = (load_file(folder / "model.safetensors") for folder in (a, b, tmp_path / "out"))
    assert torch.allclose(both["classifier.weight"], (one["classifier.weight"] + two["classifier.weight"]) / 2)


@needs_library
@pytest.mark.slow
def test_the_library_scores_by_the_mean_of_heads_whatever_the_layouts(tmp_path: Path) -> None:
    """Old and new files as the library itself writes and reads them: equal to a model with the mean of both state dicts."""
    from sentence_transformers import CrossEncoder

    old = cross_encoder(tmp_path / "old", 0, "4")
    CrossEncoder(str(cross_encoder(tmp_path / "plain", 1, "1"))).save_pretrained(str(tmp_path / "new"))
    texts = [("the doctor saw", "a lawyer"), ("who helped", "near the river")]
    expected = CrossEncoder(str(old))
    tensors = [load_file(folder / "model.safetensors") for folder in (old, tmp_path / "new")]
    expected.model.load_state_dict({n: (tensors[0][n] + tensors[1][n]) / 2 for n in tensors[0]}, strict=False)
    for k, models in enumerate(((old, tmp_path / "new"), (tmp_path / "new", old))):
        merged(tmp_path / f"out{k}", *models)
        scores = CrossEncoder(str(tmp_path / f"out{k}")).predict(texts)
        assert torch.allclose(torch.tensor(scores), torch.tensor(expected.predict(texts)), atol=1e-6)


def test_configs_that_differ_name_the_option_that_decides(tmp_path: Path) -> None:
    """Of the encoder: refused with the option; with it the first model's activation is kept, and said."""
    a = save_checkpoint(tmp_path / "a", bert_config(), seed=0)
    b = save_checkpoint(tmp_path / "b", bert_config(hidden_act="relu", layer_norm_eps=1e-5), seed=1)
    with pytest.raises(MismatchError, match="hidden_act is 'gelu' in .*--config reference"):
        merged(tmp_path / "out", a, b)
    report = merged(tmp_path / "out", a, b, config="reference")
    kept = next(note for note in report.notes if "configs differ" in note)
    assert "hidden_act is 'gelu'" in kept
    assert "layer_norm_eps" in kept
    written = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert written["hidden_act"] == "gelu"
    merged(tmp_path / "other", b, a, config="reference")
    assert json.loads((tmp_path / "other/config.json").read_text(encoding="utf-8"))["hidden_act"] == "relu"


def test_sizes_that_differ_get_no_advice_that_would_not_help(tmp_path: Path) -> None:
    a = save_checkpoint(tmp_path / "a", bert_config(), seed=0)
    b = save_checkpoint(tmp_path / "b", bert_config(intermediate_size=48), seed=1)
    for more in ({}, {"config": "reference"}):
        with pytest.raises(MismatchError, match="shapes differ") as caught:
            merged(tmp_path / "out", a, b, **more)
        assert "--config" not in str(caught.value)


def test_modules_of_one_model_alone_are_never_thrown_away_by_the_advice_unsaid(tmp_path: Path) -> None:
    a, b = save_sentence(tmp_path / "a"), save_sentence(tmp_path / "b", seed=1, dense=False)
    with pytest.raises(MismatchError, match=f"--heads reference keeps the modules of {a}, and leaves those of {b} out"):
        merged(tmp_path / "out", a, b)


def test_one_option_keeps_a_pipeline_and_merges_its_weights(tmp_path: Path) -> None:
    """PyLate's settings differ: with --config reference the dense layers are averaged all the same."""
    a = save_sentence(tmp_path / "a", **PYLATE)
    b = save_sentence(tmp_path / "b", seed=1, **PYLATE | {"document_length": 300})
    with pytest.raises(MismatchError, match=r"document_length is 180 in .*--config reference"):
        merged(tmp_path / "out", a, b)
    report = merged(tmp_path / "out", a, b, config="reference")
    assert any("document_length is 180" in note for note in report.notes)
    one, two, both = (load_file(f / "2_Dense/model.safetensors") for f in (a, b, tmp_path / "out"))
    assert all(torch.allclose(both[n], (one[n] + two[n]) / 2) for n in both)
    shutil.rmtree(tmp_path / "out")
