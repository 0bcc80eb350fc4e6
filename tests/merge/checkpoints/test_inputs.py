"""Inputs fit the model: no longer than the places it can tell, and batched without losing or mixing anything."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_case import CASES
from classifier_families import CLASSIFIERS, classifier_config
from layered import family_config
from tiny import SPECIAL, WORDS, random_tensors, save_checkpoint, save_tokenizer

from merge.checkpoints.config_file import AFTER_PADDING, position_limit
from merge.checkpoints.inputs import (
    MAX_LENGTH,
    Tokens,
    batch_tokens,
    check_ids,
    encode,
    load_tokenizer,
    positions,
    random_inputs,
    read_tokens,
    segment_fault,
    tokenise,
)
from merge.checkpoints.transformers_model import build
from merge.errors import CalibrationError


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "bert", "max_position_embeddings": 32}, 32),
        ({"model_type": "gpt2", "n_positions": 24}, 24),
        ({"model_type": "roberta", "max_position_embeddings": 40, "pad_token_id": 1}, 38),
        ({"model_type": "roberta", "max_position_embeddings": 40, "pad_token_id": 5}, 34),
        ({"model_type": "mpnet", "max_position_embeddings": 40, "pad_token_id": 1}, 38),
        ({"model_type": "mpnet", "max_position_embeddings": 40, "pad_token_id": 5}, 38),
        ({"model_type": "xlnet"}, MAX_LENGTH),
    ],
)
def test_positions_are_those_that_a_text_can_use(config: dict[str, object], expected: int) -> None:
    """RoBERTa leaves the places up to its padding token's id unused, MPNet always two; GPT-2 has another word for them."""
    assert positions(config) == expected


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("BertModel", {}),
        ("RobertaModel", {}),
        ("RobertaModel", {"pad_token_id": 5}),
        ("MPNetModel", {"pad_token_id": 5}),
        ("GPT2Model", {}),
    ],
)
def test_a_text_of_that_length_runs_and_a_longer_one_does_not(name: str, changes: dict[str, int]) -> None:
    """The number is exact: one more is out of the table's range."""
    config = {**CASES[name][0], **changes}
    model = build(config, random_tensors(config, 0, torch.float32))
    most = positions(config)
    ids = torch.full((1, most + 1), 3)
    with torch.inference_mode():
        model(input_ids=ids[:, :most])
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids)
    assert all(batch["input_ids"].shape[1] <= most for batch in random_inputs(config))


LIMITED = {*(AFTER_PADDING & CLASSIFIERS.keys()), "bert", "gpt2", "bart"}


@pytest.mark.parametrize("name", sorted(LIMITED))
def test_the_limit_of_every_family_that_counts_from_its_padding_is_exact(name: str) -> None:
    """One token more is out of the range of the family's own table, or read as padding; the limit itself is not."""
    config = classifier_config(name)
    model = build(config, random_tensors(config, 0, torch.float32))
    most = position_limit(config)
    assert most is not None
    ids = torch.full((1, most + 1), 3)
    with torch.inference_mode():
        model(input_ids=ids[:, :most])
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids)


def test_families_without_positions_have_no_limit() -> None:
    assert position_limit(classifier_config("xlnet")) is None
    assert position_limit(classifier_config("t5")) is None
    assert position_limit({"model_type": "led", "max_encoder_position_embeddings": 64}) == 64


# ---- tokens and batches ----

TEXTS = [("the doctor saw",), ("who",), ("the " * 40,), ("a lawyer helped the doctor",), ("who saw",), ("river",)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    return load_tokenizer(folder)


@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
def test_batches_are_what_the_tokenizer_itself_pads(tokenizer: Any, pairs: bool) -> None:
    """Each batch, unsorted and unbatched by hand, is the tokenizer's own truncated and padded reading of its texts."""
    texts = [(*text, "near the river") for text in TEXTS] if pairs else TEXTS
    found = encode(tokenizer, texts, 16)
    assert found.cut == 1
    assert sorted(k for rows in found.rows for k in rows) == list(range(len(texts)))
    for batch, rows in zip(found.batches, found.rows, strict=True):
        columns = [list(column) for column in zip(*(texts[k] for k in rows), strict=True)]
        due = tokenizer(*columns, truncation=True, max_length=16, padding=True, return_tensors="pt")
        assert batch.keys() == due.keys()
        assert all(torch.equal(batch[name], due[name]) for name in due)


def test_rows_are_sorted_by_length_and_then_by_place(tokenizer: Any) -> None:
    assert [k for rows in encode(tokenizer, TEXTS, 16).rows for k in rows] == [1, 5, 4, 0, 3, 2]


def planned(lengths: tuple[int, ...], budget: int, even: float = 1.0) -> list[list[int]]:
    """Return the lengths of the texts of each batch; every value of a text is its own length."""
    flat = torch.tensor([n for n in lengths for _ in range(n)])
    found = batch_tokens(Tokens({"input_ids": flat}, lengths, pad=99, cut=0), budget, even)
    for batch, rows in zip(found.batches, found.rows, strict=True):
        for line, k in zip(batch["input_ids"].tolist(), rows, strict=True):
            assert line == [lengths[k]] * lengths[k] + [99] * (len(line) - lengths[k])
    return [[lengths[k] for k in rows] for rows in found.rows]


def test_a_batch_holds_at_most_its_budget_with_padding() -> None:
    """Three texts of 4 fit 12 tokens; with one of 5 beside them they would be 20. One beyond the budget goes alone."""
    assert planned((5, 4, 4, 13, 4), 12) == [[4, 4, 4], [5], [13]]
    assert planned((5, 4, 4, 13, 4), 20) == [[4, 4, 4, 5], [13]]
    assert planned((4, 4), 7) == [[4], [4]]


def test_a_batch_that_is_full_enough_ends_where_texts_get_longer() -> None:
    """At half of 16 tokens: two of 4 are enough and the 5 starts anew, although all three would fit; one of 4 is not."""
    assert planned((4, 4, 5), 16, even=0.5) == [[4, 4], [5]]
    assert planned((4, 5, 5), 16, even=0.5) == [[4, 5, 5]]
    assert planned((4, 4, 4, 4, 4), 16, even=0.5) == [[4, 4, 4, 4], [4]]
    assert planned((4, 4, 5), 16) == [[4, 4, 5]]


def test_a_token_without_a_row_is_named_with_the_number_of_rows(tokenizer: Any) -> None:
    """The largest id counts, wherever it stands; the last row is one that a token may have."""
    ids = [torch.tensor([[3, 2]]), torch.tensor([[9, 4], [1, 0]])]
    batches = [{"input_ids": values} for values in ids]
    check_ids(batches, {"vocab_size": 10})
    check_ids(batches, {"text_config": {"vocab_size": 10}, "vocab_size": 2})
    check_ids(batches, {})
    with pytest.raises(
        CalibrationError, match=r"gives a token the id 9, and the model has 9 embeddings \(vocab_size\)"
    ):
        check_ids(batches, {"vocab_size": 9})
    last, rows = WORDS[-1], len(SPECIAL) + len(WORDS)
    assert len(tokenise(tokenizer, [(last,)], {"vocab_size": rows})[0]) == 1
    with pytest.raises(CalibrationError, match=f"the id {rows - 1}, and the model has {rows - 1} embeddings"):
        tokenise(tokenizer, [(last,)], {"vocab_size": rows - 1})


# ---- decoders behind an encoder ----

TWO_SIDED = {"is_encoder_decoder": True, "decoder_start_token_id": 2, "pad_token_id": 1}
CONDITIONAL = {
    "t5": family_config("t5", architectures=["T5ForConditionalGeneration"], num_layers=1, **TWO_SIDED),
    "bart": family_config("bart", architectures=["BartForConditionalGeneration"], decoder_layers=1, **TWO_SIDED),
}


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_decoder_reads_the_text_moved_on_by_one(name: str) -> None:
    """As the model itself moves labels on, where it is given those."""
    config = CONDITIONAL[name]
    model = build(config, random_tensors(config, 0, torch.float32))
    for batch in random_inputs(config):
        own, ids = batch["decoder_input_ids"], batch["input_ids"]
        assert torch.equal(own[:, 1:], ids[:, :-1])
        assert own[:, 0].tolist() == [2] * len(ids)
        with torch.inference_mode():
            said = model(**batch).logits
            given = {field: values for field, values in batch.items() if field != "decoder_input_ids"}
            assert torch.equal(said, model(**given, labels=ids).logits)
            assert not torch.equal(said, model(**given, decoder_input_ids=ids).logits)


def test_a_decoder_begins_with_the_padding_where_no_beginning_is_stated() -> None:
    config = {key: value for key, value in CONDITIONAL["t5"].items() if key != "decoder_start_token_id"}
    assert {int(batch["decoder_input_ids"][0, 0]) for batch in random_inputs(config)} == {1}


@pytest.mark.parametrize(
    "config",
    [
        family_config("t5", **TWO_SIDED),
        CASES["BertModel"][0],
        CASES["GPT2LMHeadModel"][0],
        {**CONDITIONAL["t5"], "architectures": ["T5ForSequenceClassification"]},
    ],
    ids=["T5EncoderModel", "BertModel", "GPT2LMHeadModel", "T5ForSequenceClassification"],
)
def test_without_a_decoder_that_reads_a_text_there_is_nothing_for_one(config: dict[str, Any]) -> None:
    """Encoders have none, and models with another head move the text on themselves."""
    assert not any("decoder_input_ids" in batch for batch in random_inputs(config))
    assert all("decoder_input_ids" in batch for batch in random_inputs(CONDITIONAL["t5"]))


@pytest.mark.parametrize(
    ("config", "largest", "fault"),
    [
        ({"type_vocab_size": 1}, 1, True),
        ({"type_vocab_size": 2}, 1, False),
        ({"type_vocab_size": 2}, 2, True),
        ({"type_vocab_size": 1}, 0, False),
        ({"type_vocab_size": 0}, 1, False),  # DeBERTa reads none
        ({}, 1, False),
        ({"text_config": {"type_vocab_size": 1}}, 1, True),
    ],
)
def test_a_segment_without_an_embedding_is_one_line(config: dict[str, Any], largest: int, fault: bool) -> None:
    """A pair read by BERT's tokenizer for a model of one segment: the embedding would raise an IndexError."""
    line = segment_fault(config, largest)
    assert (line is not None) is fault
    batch = {"input_ids": torch.zeros(1, 2, dtype=torch.int64), "token_type_ids": torch.tensor([[0, largest]])}
    if fault:
        assert f"the segment {largest}" in str(line)
        with pytest.raises(CalibrationError, match="type_vocab_size"):
            check_ids([batch], config)
    else:
        check_ids([batch], config)


def test_texts_are_padded_on_the_side_of_the_tokenizers_class(tokenizer: Any) -> None:
    """XLNet's class pads on the left, where its head does not look; a setting for generation changes nothing."""
    from transformers import XLNetTokenizer

    assert XLNetTokenizer.padding_side == "left"
    texts = [("the doctor saw",), ("the doctor saw a lawyer and left",)]
    left = type("LeftTokenizer", (type(tokenizer),), {"padding_side": "left"})
    for padding_side, made_left in (("right", False), ("left", False), ("right", True)):
        used = copy.copy(tokenizer)
        used.padding_side = padding_side
        if made_left:
            used.__class__ = left
        mask = encode(used, texts, 32).batches[0]["attention_mask"]
        assert bool(mask[0, 0] == 0) is made_left


@pytest.mark.parametrize(
    ("text", "special"), [(("the doctor saw a lawyer",), 2), (("the doctor saw", "a lawyer saw"), 3)]
)
def test_a_limit_below_the_special_tokens_is_refused(tmp_path: Path, text: tuple[str, ...], special: int) -> None:
    """The tokenizers library then leaves the text whole. The control: a limit that they fill is kept."""
    tokenizer = load_tokenizer(save_checkpoint(tmp_path / "m"))
    for longest in range(1, special):
        with pytest.raises(
            CalibrationError, match=rf"does not cut texts to {longest} tokens?: it gave \d\. Special tokens"
        ):
            read_tokens(tokenizer, [text, text], longest)
    assert read_tokens(tokenizer, [text, text], special).lengths == (special, special)
    assert read_tokens(tokenizer, [text, text], 99).cut == 0
