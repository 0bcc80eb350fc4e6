"""What transformers makes of a config: asked once, the same from the cache, asked again when anything changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import bert_config

import merge.checkpoints.structure
from merge.checkpoints.structure import Structure, structure_of
from merge.checkpoints.transformers_model import meta_model, model_config
from merge.errors import CheckpointError


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count how often transformers is asked, with an empty cache."""
    monkeypatch.setenv("MERGE_MODELS_CACHE", str(tmp_path / "cache"))
    ask, seen = merge.checkpoints.structure._ask_transformers, []

    def counted(key: str, config: dict[str, object], tensors: int | None) -> Structure:
        seen.append(key)
        return ask(key, config, tensors)

    monkeypatch.setattr(merge.checkpoints.structure, "_ask_transformers", counted)
    return seen


@pytest.mark.parametrize(
    "head", ["BertModel", "BertForSequenceClassification", "BertForMaskedLM", "BertForPreTraining"]
)
def test_a_structure_is_what_the_model_says_from_the_cache_too(head: str, asked: list[str]) -> None:
    config = bert_config(head)
    first = structure_of(config)
    forget()
    assert structure_of(config) == first
    assert len(asked) == 1
    model = meta_model(config)
    assert list(first.shapes.items()) == [(n, tuple(t.shape)) for n, t in model.state_dict().items()]
    assert first.ties == dict(model.all_tied_weights_keys)
    assert first.prefix == "bert"
    assert first.settings["hidden_size"] == 24
    assert first.runs_on_text
    words = "embeddings.word_embeddings.weight" if head == "BertModel" else "bert.embeddings.word_embeddings.weight"
    assert words in first.vocabulary
    assert ("cls.predictions.decoder.weight" in first.vocabulary) == (head in ("BertForMaskedLM", "BertForPreTraining"))
    assert all(first.shapes[name][0] == config["vocab_size"] for name in first.vocabulary)


def test_label_names_stand_in_the_order_of_the_logits() -> None:
    """JSON sorts "10" before "2"; transformers does not."""
    names = [f"c{i}" for i in range(12)]
    assert structure_of(bert_config(labels=names)).label_names == tuple(names)
    unnamed = {k: v for k, v in bert_config().items() if k not in ("id2label", "label2id")}
    assert structure_of(unnamed | {"num_labels": 2}).label_names == ("LABEL_0", "LABEL_1")
    assert tuple(model_config(unnamed | {"num_labels": 2}).id2label.values()) == ("LABEL_0", "LABEL_1")


def test_another_config_or_another_transformers_is_asked_again(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    structure_of(bert_config())
    structure_of(bert_config(hidden_size=36))
    assert len(asked) == 2
    monkeypatch.setattr(merge.checkpoints.structure, "transformers_build", lambda: "another")
    structure_of(bert_config())
    assert len(asked) == 3


def forget() -> None:
    """Let this process read structures from the cache again."""
    merge.checkpoints.structure.STRUCTURES.clear()


def test_a_damaged_or_forbidden_cache_is_asked_past(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = structure_of(bert_config())
    for cached in (tmp_path / "cache").rglob("*.json"):
        cached.write_text("{half", encoding="utf-8")
    assert structure_of(bert_config()) is first  # a process reads it once
    assert len(asked) == 1
    forget()
    assert structure_of(bert_config()) == first
    forget()
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MERGE_MODELS_CACHE", str(tmp_path / "file"))
    assert structure_of(bert_config()) == first
    assert len(asked) == 3


def test_a_config_that_cannot_be_built_is_an_error_every_time(asked: list[str]) -> None:
    """A failure is not remembered as an answer."""
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no model class 'BertForNothing'"):
            structure_of(bert_config("BertForNothing"))
    assert len(asked) == 2
