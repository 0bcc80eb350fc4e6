"""Ids far beyond a vocabulary: the tokenizers library makes room for all up to them, and ends the process when it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tokenizer

from merge.checkpoints.inputs import load_tokenizer
from merge.checkpoints.tokenizers.files import check_listed_ids, stated_ids
from merge.checkpoints.tokenizers.tokenizer import load_any, parse
from merge.errors import CheckpointError, MismatchError

HUGE = (10**9, 2**31, 2**32 - 1, 10**30)


def changed(path: Path, number: int) -> None:
    """Give one token of a file this id."""
    stored: Any = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if path.name == "tokenizer.json":
        stored["model"]["vocab"]["river"] = number
    elif path.name == "tokenizer_config.json":
        stored["added_tokens_decoder"] = {str(number): {"content": "river", "special": False}}
    else:
        stored["river"] = number
    path.write_text(json.dumps(stored), encoding="utf-8")


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "added_tokens.json", "tokenizer_config.json"])
def test_an_id_far_beyond_the_tokens_is_one_line_before_the_library_sees_it(
    name: str, number: int, tmp_path: Path
) -> None:
    save_tokenizer(tmp_path)
    check_listed_ids(tmp_path)
    changed(tmp_path / name, number)
    for read in (check_listed_ids, load_any, load_tokenizer):
        with pytest.raises(CheckpointError, match=f"{name} gives 'river' the id {number}, though it lists") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)
    if name == "tokenizer.json":
        with pytest.raises(CheckpointError, match="the id"):
            parse((tmp_path / name).read_text(encoding="utf-8"), tmp_path)


@pytest.mark.parametrize("value", ["x", 1.0, None, True, [1]])
def test_an_id_that_is_no_whole_number_is_one_line(value: Any, tmp_path: Path) -> None:
    """In the vocabulary and among added tokens of tokenizer.json; the control is the file as it was."""
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    sound = path.read_text(encoding="utf-8")
    for place in ("vocab", "added_tokens"):
        stored = json.loads(sound)
        if place == "vocab":
            stored["model"]["vocab"]["river"] = value
        else:
            stored["added_tokens"] = [{"content": "river", "id": value}]
        path.write_text(json.dumps(stored), encoding="utf-8")
        with pytest.raises(
            MismatchError, match="gives 'river' the id .*; expected a token and a whole number"
        ) as caught:
            stated_ids(tmp_path)
        assert "\n" not in str(caught.value)
    path.write_text(sound, encoding="utf-8")
    assert "river" in stated_ids(tmp_path)["tokenizer.json"]


def test_added_tokens_after_a_whole_vocabulary_pass(tmp_path: Path) -> None:
    """The control: one added token of XLM-R has the id 250,001."""
    save_tokenizer(tmp_path)
    changed(tmp_path / "added_tokens.json", 250_001)
    check_listed_ids(tmp_path)
