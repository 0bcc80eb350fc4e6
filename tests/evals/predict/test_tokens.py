"""Tokens are those of the checkpoint's own tokenizer, read once, and again whenever anything that decides them changes."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from captured_log import CapturedLog
from tiny import WORDS, bert_config, save_checkpoint, save_tokenizer

import evals.predict.tokens
from evals.predict.tokens import pack, tokenise_rows, tokens_key, unpack
from evals.tasks.task import Rows
from merge.checkpoints.inputs import Tokens
from merge.checkpoints.open import open_checkpoint
from merge.disk.cache import cache_folder
from merge.errors import TaskError

TEXTS = (("the doctor saw", "a lawyer"), ("who", "the river near the doctor quietly helped"), ("the " * 40, "river"))


def rows_of(texts: tuple[tuple[str, ...], ...], gold: int = 0) -> Rows:
    return Rows(texts, (gold,) * len(texts), ("no", "yes"), "made", "test", tuple(map(str, range(len(texts)))))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MERGE_MODELS_CACHE", str(tmp_path / "cache"))
    return save_checkpoint(tmp_path / "a", seed=1)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often texts are given to a tokenizer."""
    counted: list[int] = []
    plain = evals.predict.tokens.read_tokens

    def counting(tokenizer: Any, texts: Any, longest: int) -> Tokens:
        counted.append(len(texts))
        return plain(tokenizer, texts, longest)

    monkeypatch.setattr(evals.predict.tokens, "read_tokens", counting)
    return counted


def tokens_of(folder: Path, texts: tuple[tuple[str, ...], ...] = TEXTS, **options: Any) -> Tokens:
    return tokenise_rows(open_checkpoint(str(folder)), rows_of(texts), **options)


def same(a: Tokens, b: Tokens) -> bool:
    equal = a.fields.keys() == b.fields.keys() and all(torch.equal(a.fields[n], b.fields[n]) for n in a.fields)
    return equal and (a.lengths, a.pad, a.cut) == (b.lengths, b.pad, b.cut)


def test_tokens_are_those_of_transformers(folder: Path) -> None:
    """Row by row, truncated to the model's 32 places; the third row is cut and counted."""
    found = tokens_of(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    alone = [tokenizer(*text, truncation=True, max_length=32) for text in TEXTS]
    assert found.fields.keys() == {"input_ids", "token_type_ids", "attention_mask"}
    for name, values in found.fields.items():
        assert values.tolist() == [value for text in alone for value in text[name]]
    assert found.lengths == tuple(len(text["input_ids"]) for text in alone)
    assert (found.cut, found.pad) == (1, tokenizer.pad_token_id)


def test_the_second_reading_asks_no_tokenizer(folder: Path, reads: list[int]) -> None:
    first, second = tokens_of(folder), tokens_of(folder)
    assert reads == [3]
    assert same(first, second)
    assert all(values.dtype == torch.int64 for values in second.fields.values())


def test_without_the_cache_nothing_is_read_or_written(folder: Path, reads: list[int]) -> None:
    assert same(tokens_of(folder, cache=False), tokens_of(folder, cache=False))
    assert reads == [3, 3]
    assert not (cache_folder() / "tokens").exists()


def test_a_fine_tuned_copy_shares_the_tokens(folder: Path, reads: list[int]) -> None:
    """Other weights and another card decide no token; gold labels neither."""
    tokens_of(folder)
    other = save_checkpoint(folder.parent / "b", seed=2)
    (other / "README.md").write_text("another", encoding="utf-8")
    tokens_of(other)
    tokenise_rows(open_checkpoint(str(folder)), rows_of(TEXTS, gold=1))
    assert reads == [3]


def more_words(folder: Path) -> None:
    save_tokenizer(folder, words=[*reversed(WORDS)])


def other_settings(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 16}), encoding="utf-8")


def fewer_places(folder: Path) -> None:
    shutil.rmtree(folder)
    save_checkpoint(folder, bert_config(max_position_embeddings=24), seed=1)


@pytest.mark.parametrize("changing", [more_words, other_settings, fewer_places])
def test_whatever_decides_the_tokens_decides_the_key(changing: Any, folder: Path, reads: list[int]) -> None:
    """A stale answer would be wrong ids in silence: each change gives other tokens, and they are read anew."""
    before = tokens_of(folder)
    changing(folder)
    after = tokens_of(folder)
    assert reads == [3, 3]
    assert not same(before, after)


def test_other_texts_and_other_libraries_have_keys_of_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """("a b", "c") and ("a", "b c") hold the same words."""
    checkpoint = open_checkpoint(str(folder))
    texts = [(("the a", "doctor"),), (("the", "a doctor"),), (("the a doctor",),)]
    keys = [tokens_key(checkpoint, rows_of(text)) for text in texts]
    monkeypatch.setattr(evals.predict.tokens, "installed_version", lambda _name: "0")
    keys += [tokens_key(checkpoint, rows_of(text)) for text in texts]
    assert len(set(keys)) == 6


def test_a_damaged_file_is_said_and_written_anew(folder: Path, reads: list[int], captured_log: CapturedLog) -> None:
    first = tokens_of(folder)
    (path,) = (cache_folder() / "tokens").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with captured_log.at_level(logging.WARNING):
        assert same(tokens_of(folder), first)
    assert len(captured_log.messages) == 1
    assert str(path) in captured_log.messages[0]
    assert same(tokens_of(folder), first)
    assert reads == [3, 3]
    assert len(captured_log.messages) == 1


def test_packing_is_undone() -> None:
    """Ids beyond 16 bits, and values below zero, which a byte would turn around."""
    tokens = Tokens({"input_ids": torch.tensor([70000, 1, 255]), "odd": torch.tensor([-1, 0, 1])}, (1, 2), 3, 1)
    packed = pack(tokens)
    assert same(unpack(packed), tokens)
    assert packed["field.input_ids"].dtype == torch.int32
    assert pack(Tokens({"input_ids": torch.tensor([255])}, (1,), 0, 0))["field.input_ids"].dtype == torch.uint8


def test_a_cached_reading_is_still_checked_against_the_vocabulary(folder: Path) -> None:
    """The tokens may be known from a checkpoint with more embeddings."""
    tokens_of(folder)
    small = save_checkpoint(folder.parent / "b", bert_config(vocab_size=12), seed=1)
    with pytest.raises(TaskError, match="gives token 15, but the model has embeddings of 12 tokens"):
        tokens_of(small)


# ---- how long a row may be ----


def limits(folder: Path, positions: int, of_tokenizer: int) -> Path:
    """Write a model with so many positions and a tokenizer that states a limit."""
    made = save_checkpoint(folder, bert_config(max_position_embeddings=positions), seed=1)
    path = made / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": of_tokenizer}), encoding="utf-8")
    return made


@pytest.mark.parametrize(
    ("positions", "of_tokenizer", "asked", "read"),
    [
        (700, 10**30, None, 603),
        (700, 600, None, 600),
        (560, 10**30, None, 560),
        (700, 10**30, 90, 90),
        (64, 64, 64, 64),
    ],
)
def test_a_row_is_read_to_the_model_s_own_limit(
    tmp_path: Path, positions: int, of_tokenizer: int, asked: int | None, read: int
) -> None:
    """600 words and three special tokens: the smallest of positions, tokenizer and --max-length counts, and 512 says nothing."""
    checkpoint = open_checkpoint(str(limits(tmp_path / "a", positions, of_tokenizer)))
    tokens = tokenise_rows(checkpoint, rows_of((("the " * 599, "who"),)), False, asked)
    assert tokens.lengths == (read,)
    assert tokens.cut == (read < 603)


def test_more_than_the_model_takes_cannot_be_asked_for(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(limits(tmp_path / "a", 64, 10**30)))
    with pytest.raises(TaskError, match="--max-length is 65, but the model takes 64 positions. Give 64 or less"):
        tokenise_rows(checkpoint, rows_of(TEXTS), False, 65)
    other = open_checkpoint(str(limits(tmp_path / "b", 64, 32)))
    with pytest.raises(TaskError, match="--max-length is 33, but the model takes 32 tokens by its tokenizer's limit"):
        tokenise_rows(other, rows_of(TEXTS), False, 33)


def test_rows_are_padded_with_the_token_that_the_model_knows(folder: Path) -> None:
    """The tokenizer's pad token is 0, the config's another: heads and positions look for the config's."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": 7}), encoding="utf-8")
    assert tokens_of(folder).pad == 7
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": None}), encoding="utf-8")
    assert tokens_of(folder).pad == 0


def test_a_pair_for_a_model_of_one_segment_is_one_line(tmp_path: Path) -> None:
    """BERT's tokenizer gives the second text the segment 1; the embedding would raise an IndexError."""
    model = save_checkpoint(tmp_path / "m", bert_config(type_vocab_size=1))
    assert tokens_of(model, (("the doctor",), ("a river",))).lengths
    with pytest.raises(TaskError, match="the segment 1, and the model has 1 segment embedding") as caught:
        tokens_of(model, (("the doctor", "a river"),))
    assert str(model) in str(caught.value)
    assert "\n" not in str(caught.value)
