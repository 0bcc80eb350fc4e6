"""Vocabularies: every row keeps its word, every union reads as its parents do, and what cannot be united is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tiny import SPECIAL, WORDS, save_tokenizer
from tokenizers import AddedToken, models, pre_tokenizers, processors

import merge.checkpoints.tokenizers.vocabulary
from merge.checkpoints.tokenizers.tokenizer import parse, read_tokenizer, tokenizer_names
from merge.checkpoints.tokenizers.vocabulary import (
    VocabularyPlan,
    config_changes,
    fill_missing,
    gather,
    plan_vocabulary,
    present,
    write_tokenizer,
)
from merge.errors import CheckpointError, MismatchError, OutputError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CLOSED = [*LETTERS, *(f"##{c}" for c in LETTERS)]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>"]


def wordpiece(folder: Path, words: Sequence[str], vocab_txt: bool = False, **settings: Any) -> Path:
    """Write a BERT tokenizer of these words behind the special tokens."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    entries = {word: i for i, word in enumerate([*SPECIAL, *words])}
    added = settings.pop("added", [])
    made = transformers.BertTokenizer(vocab=entries, **settings)
    made.add_tokens(added)
    made.save_pretrained(folder)
    if vocab_txt:
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in entries), encoding="utf-8")
    return folder


def bpe(folder: Path, merges: Sequence[tuple[str, str]], **settings: Any) -> Path:
    """Write a RoBERTa tokenizer: bytes, then the products of the merges, then <mask>."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    words = [*ROBERTA, *BYTES, *dict.fromkeys(a + b for a, b in merges), "<mask>"]
    made = transformers.RobertaTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=list(merges), **settings)
    made.save_pretrained(folder)
    return folder


def plan_of(*folders: Path, wanted: Any = "union", sizes: Sequence[int] | None = None) -> VocabularyPlan:
    found = [read_tokenizer(folder) for folder in folders]
    counts = sizes or [len(t.tokens) for t in found if t is not None]
    return plan_vocabulary(found, [folder.name + "/" for folder in folders], counts, wanted)


def written(plan: VocabularyPlan, output: Path) -> Any:
    """Write the plan's tokenizer beside a config.json and load it as a user would."""
    output.mkdir(exist_ok=True)
    source = plan.parents[plan.chosen].folder
    (output / "config.json").write_bytes((source / "config.json").read_bytes())
    write_tokenizer(plan, source, output)
    return load(output)


def load(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(str(folder))


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


# Reading


def test_a_tokenizer_is_read_whole(tmp_path: Path) -> None:
    found = read_tokenizer(wordpiece(tmp_path / "a", WORDS, added=["zebra"]))
    assert found is not None
    assert found.kind == "WordPiece"
    assert found.vocab == {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    assert found.tokens == found.vocab | {"zebra": len(found.vocab)}
    assert found.added["[CLS]"]["special"] is True
    assert found.added["zebra"]["special"] is False
    assert found.settings["normalizer.lowercase"] is True
    assert found.settings["model.unk_token"] == "[UNK]"
    assert found.merges == []


def test_older_files_read_as_the_tokenizer_json_they_became(tmp_path: Path) -> None:
    """A vocab.txt, or a vocab.json with merges.txt, says no settings: transformers' own reading of them is the truth."""
    a = wordpiece(tmp_path / "a", WORDS, vocab_txt=True)
    b = bpe(tmp_path / "b", [("a", "b"), ("ab", "c")])
    whole = [read_tokenizer(folder) for folder in (a, b)]
    stored = whole[1]
    assert stored is not None
    assert stored.merges == [("a", "b"), ("ab", "c")]
    (b / "vocab.json").write_text(json.dumps(stored.vocab))
    (b / "merges.txt").write_text("#version: 0.2\na b\nab c\n")
    for folder, before in zip((a, b), whole, strict=True):
        (folder / "tokenizer.json").unlink()
        after = read_tokenizer(folder)
        assert after is not None
        assert before is not None
        assert (after.tokens, after.merges, after.settings) == (before.tokens, before.merges, before.settings)


def test_no_tokenizer_is_none_and_a_plan_without_one_is_refused(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path) is None
    a = wordpiece(tmp_path / "a", WORDS)
    with pytest.raises(MismatchError, match="no tokenizer in b/"):
        plan_vocabulary([read_tokenizer(a), None], ["a/", "b/"], [18, 18], "union")


MALFORMED = {
    "not json": "{",
    "a list": "[]",
    "no model": "{}",
    "no vocab": '{"model": {"type": "WordPiece"}}',
    "merge without product": '{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}',
    "a missing field": '{"added_tokens": [], "model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a"}}',
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_tokenizer_is_refused(tmp_path: Path, text: str) -> None:
    """Also what the tokenizers library panics on: that could not be caught."""
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"malformed|lacks a part"):
        read_tokenizer(tmp_path)


def test_two_tokens_with_one_id_are_refused(tmp_path: Path) -> None:
    """The tokenizers library drops one of them without a word; its row would then belong to no token."""
    folder = wordpiece(tmp_path / "a", WORDS)
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["model"]["vocab"]["saw"] = stored["model"]["vocab"]["a"]
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="Two tokens with one id"):
        read_tokenizer(folder)


def test_a_class_that_does_not_read_the_file_is_refused(tmp_path: Path) -> None:
    """A RoBERTa tokenizer beside a vocab.txt loads without an error, with five tokens of its own."""
    folder = wordpiece(tmp_path / "a", WORDS, vocab_txt=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert read_tokenizer(folder) is not None
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(CheckpointError, match="Is the tokenizer_class"):
        read_tokenizer(folder)


@pytest.mark.slow
def test_a_tokenizer_that_runs_in_python_is_refused(tmp_path: Path) -> None:
    """Canine reads characters and no file: what lies beside it is not its vocabulary."""
    folder = wordpiece(tmp_path / "a", WORDS, vocab_txt=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "config.json").write_text('{"model_type": "canine"}')
    with pytest.raises(CheckpointError, match="CanineTokenizer does not run on the tokenizers library"):
        read_tokenizer(folder)


def test_merges_inside_words_are_read_with_their_prefix(tmp_path: Path) -> None:
    """Of `a` and `##b` the product is `ab`; without that rule the file would look inconsistent."""
    vocab = {"[UNK]": 0, "a": 1, "##b": 2, "ab": 3}
    folder = wordlevel(tmp_path / "a", models.BPE(vocab=vocab, merges=[("a", "##b")], continuing_subword_prefix="##"))
    found = read_tokenizer(folder)
    assert found is not None
    assert found.tokens == vocab
    assert found.backend().encode("ab").tokens == ["ab"]


# Plans


@pytest.mark.parametrize("wanted", ["union", 0, 1])
def test_equal_vocabularies_are_the_identity_and_say_nothing(tmp_path: Path, wanted: Any) -> None:
    a, b = (wordpiece(tmp_path / name, WORDS) for name in "ab")
    plan = plan_of(a, b, wanted=wanted, sizes=[24, 24])
    assert plan.notes == ()
    assert plan.size == 24
    assert not plan.rewritten
    assert all(torch.equal(rows, torch.arange(24)) for rows in plan.rows)


def test_the_same_words_elsewhere_are_the_same_rows(tmp_path: Path) -> None:
    """A shuffled vocabulary with shuffled rows is the same model: re-indexed, its table is the other's."""
    words = list(WORDS)
    random.Random(0).shuffle(words)
    a, b = wordpiece(tmp_path / "a", WORDS), wordpiece(tmp_path / "b", words)
    n = len(SPECIAL) + len(WORDS)
    table = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    entries = [*SPECIAL, *WORDS]
    shuffled = torch.stack([table[entries.index(word)] for word in [*SPECIAL, *words]])
    for wanted in ("union", 0):
        plan = plan_of(a, b, wanted=wanted)
        assert plan.tokens == {word: i for i, word in enumerate(entries)}
        assert torch.equal(gather(plan.rows[0], table), table)
        assert torch.equal(gather(plan.rows[1], shuffled), table)
    assert not torch.equal(shuffled, table)


def test_a_union_keeps_the_first_and_appends_the_rest_in_order(tmp_path: Path) -> None:
    a = wordpiece(tmp_path / "a", [*CLOSED, "cat"])
    b = wordpiece(tmp_path / "b", [*CLOSED, "dog", "cat", "##ed"])
    c = wordpiece(tmp_path / "c", [*CLOSED, "##ed", "fox"])
    plan = plan_of(a, b, c)
    n = len(SPECIAL) + len(CLOSED)
    assert plan.tokens == {w: i for i, w in enumerate([*SPECIAL, *CLOSED, "cat", "dog", "##ed", "fox"])}
    assert [rows[n:].tolist() for rows in plan.rows] == [[n, -1, -1, -1], [n + 1, n, n + 2, -1], [-1, -1, n, n + 1]]
    assert plan.size == n + 4
    total = f"of {n + 4} tokens"
    assert set(plan.notes) == {
        f"1 {total} come from a/ and b/ alone, such as 'cat'",
        f"1 {total} come from b/ alone, such as 'dog'",
        f"1 {total} come from b/ and c/ alone, such as '##ed'",
        f"1 {total} come from c/ alone, such as 'fox'",
    }


def test_one_models_vocabulary_leaves_out_what_it_lacks_and_says_so(tmp_path: Path) -> None:
    a, b = wordpiece(tmp_path / "a", ["cat", "dog"]), wordpiece(tmp_path / "b", ["dog", "fox", "elk"])
    plan = plan_of(a, b, wanted=1)
    assert plan.tokenizer is plan.parents[1]
    assert plan.rows[0].tolist() == [0, 1, 2, 3, 4, 6, -1, -1]
    assert plan.rows[1].tolist() == list(range(8))
    assert "2 of 8 tokens come from b/ alone, such as 'fox'" in plan.notes
    assert "1 tokens of a/ are left out, such as 'cat'" in plan.notes


def test_rows_that_no_token_names_stay_where_they_are(tmp_path: Path) -> None:
    """Padding has no name but its place: kept by position, given up to new tokens, lost where the result ends; all said."""
    a, b = wordpiece(tmp_path / "a", ["cat"]), wordpiece(tmp_path / "b", ["cat", "dog"])
    own = plan_of(a, b, wanted=0, sizes=[9, 8])
    assert own.size == 9
    assert own.rows[0].tolist() == list(range(9))
    assert own.rows[1].tolist() == [0, 1, 2, 3, 4, 5, -1, 7, -1]  # row 6 is a word there
    both = plan_of(a, b, sizes=[9, 12])
    assert both.size == 9
    assert both.rows[0].tolist() == [0, 1, 2, 3, 4, 5, -1, 7, 8]
    assert both.rows[1].tolist() == list(range(9))
    assert "1 rows of a/ that no token names are left out" in both.notes
    assert "3 rows of b/ that no token names are left out" in both.notes
    wider = plan_of(a, a, sizes=[6, 8])
    assert (wider.size, wider.rows[1].tolist()) == (6, list(range(6)))


def test_a_token_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    a, b = wordpiece(tmp_path / "a", ["cat"]), wordpiece(tmp_path / "b", ["cat", "dog"])
    with pytest.raises(MismatchError, match=r"b/ has 6 embedding rows, but 1 tokens .* 'dog'"):
        plan_of(a, b, sizes=[6, 6])


def test_ids_in_the_config_follow_their_tokens(tmp_path: Path) -> None:
    """RoBERTa counts positions from pad_token_id: a stale one moves every position."""
    a = wordpiece(tmp_path / "a", ["cat"], added=["zebra"])
    b = wordpiece(tmp_path / "b", ["cat", "dog"])
    plan = plan_of(a, b)
    config = {"pad_token_id": 6, "bos_token_id": None, "eos_token_id": [3, 5], "vocab_size": 7, "hidden_size": 6}
    assert config_changes(plan, config, 0) == {"vocab_size": 8, "pad_token_id": 7, "eos_token_id": [3, 5]}
    with pytest.raises(MismatchError, match="pad_token_id 6, a token"):
        config_changes(plan_of(a, b, wanted=1), {"pad_token_id": 6}, 0)


# Rows


def test_gather_is_numpy_indexing_with_zeros() -> None:
    table = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(1))
    before = table.clone()
    rows = torch.tensor([2, -1, 0, 0, -1])
    expected = np.where((rows.numpy() >= 0)[:, None, None], table.numpy()[rows.numpy()], 0.0)
    assert np.array_equal(gather(rows, table).numpy(), expected)
    assert present(rows).tolist() == [True, False, True, True, False]
    assert torch.equal(gather(torch.arange(4), table), table)
    assert torch.equal(table, before)
    assert gather(rows, torch.arange(4)).tolist() == [2, 0, 0, 0, 0]
    with pytest.raises(MismatchError, match="has 2 rows, but the vocabulary plan reads row 2"):
        gather(rows, table[:2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_missing_row_is_the_mean_of_those_that_have_it(dtype: torch.dtype) -> None:
    """Then an equal-weight linear merge is the average over the models that have the token; with other weights it is not."""
    generator = torch.Generator().manual_seed(2)
    tables = [torch.randn(n, 3, generator=generator).to(dtype) for n in (4, 3, 2)]
    before = [t.clone() for t in tables]
    rows = [torch.tensor([0, 1, 2, 3, -1]), torch.tensor([0, 1, -1, 2, -1]), torch.tensor([1, -1, -1, -1, 0])]
    filled = fill_missing(rows, tables)
    assert [t.dtype for t in filled] == [dtype] * 3
    x = [t.double().numpy() for t in tables]
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3}[dtype]
    assert np.array_equal(filled[1][3].double().numpy(), x[1][2])
    np.testing.assert_allclose(filled[2][1].double().numpy(), (x[0][1] + x[1][1]) / 2, atol=tolerance)
    means = [(x[0][0] + x[1][0] + x[2][1]) / 3, (x[0][1] + x[1][1]) / 2, x[0][2], (x[0][3] + x[1][2]) / 2, x[2][0]]
    average = sum(t.double() for t in filled) / 3
    np.testing.assert_allclose(average.numpy(), np.stack(means), atol=tolerance)
    weighted = sum(w * t[1].double().numpy() for w, t in zip((0.6, 0.3, 0.1), filled, strict=True))
    renormalised = (0.6 * x[0][1] + 0.3 * x[1][1]) / 0.9
    assert np.abs(weighted - renormalised).max() > 5 * tolerance
    assert all(torch.equal(now, then) for now, then in zip(tables, before, strict=True))


def test_a_row_that_nobody_has_cannot_be_filled() -> None:
    with pytest.raises(MismatchError, match="row 1 of the result's vocabulary is in none"):
        fill_missing([torch.tensor([0, -1]), torch.tensor([0, -1])], [torch.ones(1, 2)] * 2)
    with pytest.raises(MismatchError, match="integers"):
        fill_missing([torch.tensor([0, -1]), torch.tensor([0, 1])], [torch.ones(1, dtype=torch.int64), torch.arange(2)])


# Written unions: WordPiece


def random_text(generator: random.Random, alphabet: str, words: int) -> str:
    return " ".join("".join(generator.choices(alphabet, k=generator.randint(1, 7))) for _ in range(words))


def test_a_new_word_piece_is_found_where_an_added_token_would_not_be(tmp_path: Path) -> None:
    """The case that goes wrong when `##s` is appended as an added token: "plays" became unknown."""
    a = wordpiece(tmp_path / "a", ["play", "the"])
    b = wordpiece(tmp_path / "b", ["play", "##s", "dog"])
    assert load(a).tokenize("plays") == ["[UNK]"]
    assert load(b).tokenize("plays") == ["play", "##s"]
    plan = plan_of(a, b)
    union = written(plan, tmp_path / "out")
    assert union.tokenize("plays the dog") == ["play", "##s", "the", "dog"]
    wrong = load(a)
    wrong.add_tokens(["##s", "dog"])
    assert wrong.tokenize("plays") == ["[UNK]"]
    assert union.get_vocab() == plan.tokens
    assert set(plan.tokenizer.added) == set(SPECIAL)


def test_a_wordpiece_union_reads_as_each_parent_wherever_no_new_piece_lies(tmp_path: Path) -> None:
    """Random strings: ids in range, never unknown, the parent's own pieces by row wherever no new piece begins a longer
    match; and the text comes back."""
    a = wordpiece(tmp_path / "a", [*CLOSED, "ab", "##ca", "cab", "##b##"])
    b = wordpiece(tmp_path / "b", [*CLOSED[::-1], "##ba", "aba", "abc", "ab"])
    plan = plan_of(a, b, sizes=[64, 70])
    union = written(plan, tmp_path / "out")
    generator = random.Random(4)
    parents = {folder: load(folder) for folder in (a, b)}
    same = changed = 0
    for _ in range(300):
        text = random_text(generator, "abcd", 4)
        found = ids(union, text)
        assert max(found) < plan.size
        assert union.unk_token_id not in found
        assert union.decode(found, skip_special_tokens=True) == text
        for folder, rows in zip((a, b), plan.rows, strict=True):
            parent = parents[folder]
            new = plan.tokens.keys() - parent.get_vocab().keys()
            if new & set(union.tokenize(text)):
                changed += 1
            else:
                assert [int(rows[i]) for i in found] == ids(parent, text)
                same += 1
    assert same > 100
    assert changed > 100


def test_all_files_of_a_union_say_the_same(tmp_path: Path) -> None:
    """A folder that also has the older files is read by older programs from those."""
    a = wordpiece(tmp_path / "a", [*CLOSED, "cat"], vocab_txt=True, added=[AddedToken("[ENT]", special=True), "Zebra"])
    n = len(SPECIAL) + len(CLOSED) + 1
    config = json.loads((a / "tokenizer_config.json").read_text())
    added = json.loads((a / "tokenizer.json").read_text())["added_tokens"]
    decoder = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added}
    (a / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": decoder}))
    (a / "special_tokens_map.json").write_text(
        json.dumps({"cls_token": "[CLS]", "additional_special_tokens": ["[ENT]"]})
    )
    (a / "added_tokens.json").write_text(json.dumps({"[ENT]": n, "Zebra": n + 1}))
    b = wordpiece(tmp_path / "b", [*CLOSED, "dog"], additional_special_tokens=["[ENT]", "[REL]"])
    plan = plan_of(a, b)
    assert plan.extra_special == (
        "[ENT]",
        "[REL]",
    )  # the list in special_tokens_map.json is no longer read beside a decoder
    c = wordpiece(tmp_path / "c", [*CLOSED, "fox"], additional_special_tokens=["[ENT]"])
    assert plan_of(b, c).extra_special == ()
    union = written(plan, tmp_path / "out")
    expected = [*SPECIAL, *CLOSED, "cat", "dog"]
    out = tmp_path / "out"
    assert sorted(tokenizer_names(out)) == sorted(tokenizer_names(a))
    assert (out / "vocab.txt").read_text().split("\n") == [*expected, ""]
    only = {"[ENT]": n + 1, "Zebra": n + 2, "[REL]": n + 3}
    assert json.loads((out / "added_tokens.json").read_text()) == only
    kept = json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {entry["content"]: int(i) for i, entry in kept.items()} == only | {w: i for i, w in enumerate(SPECIAL)}
    assert kept[str(n + 3)]["special"] is True
    assert kept[str(n + 2)]["special"] is False
    assert json.loads((out / "special_tokens_map.json").read_text())["additional_special_tokens"] == ["[ENT]", "[REL]"]
    assert union.get_vocab() == plan.tokens == {w: i for i, w in enumerate(expected)} | only
    pieces = ["[CLS]", "dog", "[REL]", "Zebra", "s", "[ENT]", "[SEP]"]
    assert ids(union, "dog [REL] Zebras [ENT]") == [plan.tokens[piece] for piece in pieces]
    (out / "tokenizer.json").unlink()
    old = load(out)
    for text in ("cat dogs", "dog [REL] Zebra", "[ENT] cab"):
        assert ids(old, text) == ids(union, text)


def test_a_union_of_older_files_gets_a_tokenizer_json(tmp_path: Path) -> None:
    a = wordpiece(tmp_path / "a", [*CLOSED, "cat"], vocab_txt=True)
    b = wordpiece(tmp_path / "b", [*CLOSED, "dog"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (a / name).unlink()
    union = written(plan_of(a, b), tmp_path / "out")
    assert tokenizer_names(tmp_path / "out") == ["tokenizer.json", "vocab.txt"]
    assert union.tokenize("dog cats") == ["dog", "cat", "##s"]
    same = written(plan_of(a, a), tmp_path / "same")
    assert tokenizer_names(tmp_path / "same") == ["tokenizer.json", "vocab.txt"]
    assert same.get_vocab() == load(a).get_vocab()


def test_one_models_tokenizer_is_copied_byte_for_byte(tmp_path: Path) -> None:
    a, b = wordpiece(tmp_path / "a", WORDS), wordpiece(tmp_path / "b", [*WORDS, "fox"], vocab_txt=True)
    (b / "spiece.model").write_bytes(b"\x00\xff")
    plan = plan_of(a, b, wanted=1)
    written(plan, tmp_path / "out")
    names = tokenizer_names(tmp_path / "out")
    assert names == ["tokenizer.json", "vocab.txt", "tokenizer_config.json", "spiece.model"]
    assert all((tmp_path / "out" / name).read_bytes() == (b / name).read_bytes() for name in names)


def test_a_vocab_txt_that_cannot_hold_a_token_is_refused(tmp_path: Path) -> None:
    a = wordpiece(tmp_path / "a", [*CLOSED, "cat"], vocab_txt=True)
    b = wordpiece(tmp_path / "b", [*CLOSED, "d\no"])
    with pytest.raises(OutputError, match=r"vocab.txt cannot hold the token 'd\\no'"):
        written(plan_of(a, b), tmp_path / "out")


def test_a_merges_txt_that_cannot_hold_a_merge_is_refused(tmp_path: Path) -> None:
    vocab = {"[UNK]": 0, "x": 1, " y": 2, "x y": 3}
    a = wordlevel(tmp_path / "a", models.BPE(vocab=vocab, merges=[("x", " y")], unk_token="[UNK]"))
    b = wordlevel(tmp_path / "b", models.BPE(vocab={"[UNK]": 0, "z": 1}, merges=[], unk_token="[UNK]"))
    assert "merges.txt" not in tokenizer_names(a)
    written(plan_of(a, b), tmp_path / "fine")
    (a / "merges.txt").write_text("")
    with pytest.raises(OutputError, match="merges.txt cannot hold the token ' y'"):
        written(plan_of(a, b), tmp_path / "out")


# Written unions: BPE


def test_a_bpe_union_reads_both_and_drops_nothing(tmp_path: Path) -> None:
    """Bytes make every text readable, so random strings come back exactly; these merges do not compete for a character, so
    that a text without a new piece reads as before."""
    a = bpe(tmp_path / "a", [("a", "b"), ("ab", "c"), ("Ġ", "a")])
    b = bpe(tmp_path / "b", [("a", "b"), ("d", "d"), ("dd", "ab"), ("Ġ", "a")])
    plan = plan_of(a, b)
    assert plan.tokenizer.merges == [("a", "b"), ("ab", "c"), ("Ġ", "a"), ("d", "d"), ("dd", "ab")]
    assert plan.size == len(ROBERTA) + 256 + 3 + 1 + 2
    union = written(plan, tmp_path / "out")
    assert union.tokenize("abc ddab") == ["abc", "Ġ", "ddab"]
    generator = random.Random(5)
    parents = {folder: load(folder) for folder in (a, b)}
    same = changed = 0
    for _ in range(200):
        text = random_text(generator, "abcdé☃", 3)
        found = ids(union, text)
        assert max(found) < plan.size
        assert union.decode(found, skip_special_tokens=True) == text
        for folder, rows in zip((a, b), plan.rows, strict=True):
            parent = parents[folder]
            if (plan.tokens.keys() - parent.get_vocab().keys()) & set(union.tokenize(text)):
                changed += 1
            else:
                assert [int(rows[i]) for i in found] == ids(parent, text)
                same += 1
    assert same > 100
    assert changed > 20


def test_a_bpe_union_writes_its_older_files_too(tmp_path: Path) -> None:
    a, b = bpe(tmp_path / "a", [("a", "b")]), bpe(tmp_path / "b", [("c", "d")])
    (a / "vocab.json").write_text("{}")
    (a / "merges.txt").write_text("")
    plan = plan_of(a, b)
    union = written(plan, tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    old = load(tmp_path / "out")
    assert old.get_vocab() == plan.tokens
    assert ids(old, "abcd abc") == ids(union, "abcd abc")
    assert old.tokenize("abcd") == ["ab", "cd"]


def test_merges_whose_order_hides_a_token_are_refused(tmp_path: Path) -> None:
    """Under the first's ranks `a b` comes before `b c`, and the second's `abc` would never be made again."""
    a, b = bpe(tmp_path / "a", [("a", "b")]), bpe(tmp_path / "b", [("b", "c"), ("a", "bc")])
    with pytest.raises(MismatchError, match="a text of b/ breaks: 'abc' comes out as ab c"):
        plan_of(a, b)
    alone = plan_of(a, b, wanted=0)
    assert alone.size == len(ROBERTA) + 256 + 2
    assert "b/ merges characters otherwise; the result does as a/" in alone.notes
    assert plan_of(b, a).tokenizer.merges == [("b", "c"), ("a", "bc"), ("a", "b")]


# Refusals


def wordlevel(folder: Path, kind: Any, **parts: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}'
    )
    made = tokenizers.Tokenizer(kind)
    made.pre_tokenizer = parts.get("pre_tokenizer", pre_tokenizers.Whitespace())
    made.add_special_tokens(["[UNK]"])
    if "post_processor" in parts:
        made.post_processor = parts["post_processor"]
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_wordlevel_vocabularies_unite_and_templates_keep_their_tokens(tmp_path: Path) -> None:
    """The template's id is that of an added token, which moves behind the new words."""
    both = []
    for name, words in (("a", ["[UNK]", "x"]), ("b", ["[UNK]", "x", "y"])):
        n = len(words)
        end = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", n)])
        folder = wordlevel(
            tmp_path / name, models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"), post_processor=end
        )
        stored = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        stored.add_special_tokens(["[END]"])
        stored.enable_padding(pad_id=n, pad_token="[END]")
        stored.save(str(folder / "tokenizer.json"))
        both.append(folder)
    plan = plan_of(*both)
    union = written(plan, tmp_path / "out")
    assert plan.tokenizer.stored["padding"]["pad_id"] == 3
    assert ids(union, "x y z") == [1, 2, 0, 3]
    assert ids(load(both[0]), "x") == [1, 2]
    assert union.convert_ids_to_tokens(ids(union, "x")) == ["x", "[END]"]
    stale = {**plan.tokenizer.stored, "post_processor": plan.parents[0].stored["post_processor"]}
    broken = VocabularyPlan(parse(json.dumps(stale), both[0]), plan.parents, 0, plan.size, plan.rows)
    with pytest.raises(OutputError, match="puts other special tokens around a text"):
        written(broken, tmp_path / "broken")


def test_two_kinds_have_no_union_and_no_common_rows(tmp_path: Path) -> None:
    a, b = wordpiece(tmp_path / "a", WORDS), bpe(tmp_path / "b", [("a", "b")])
    with pytest.raises(MismatchError, match="a/ has a WordPiece, b/ a BPE"):
        plan_of(a, b)
    with pytest.raises(MismatchError, match="differ in how tokens are spelled"):
        plan_of(a, b, wanted=0)


def test_unigrams_unite_only_where_pieces_and_scores_agree(tmp_path: Path) -> None:
    scores = [("[UNK]", 0.0), ("x", -1.0), ("y", -2.0)]
    a = wordlevel(tmp_path / "a", models.Unigram(scores, 0, False))
    b = wordlevel(tmp_path / "b", models.Unigram([*scores[:2], ("y", -3.0)], 0, False))
    c = wordlevel(tmp_path / "c", models.Unigram(scores, 0, False))
    stored = tokenizers.Tokenizer.from_file(str(c / "tokenizer.json"))
    stored.add_tokens(["zebra"])
    stored.save(str(c / "tokenizer.json"))
    with pytest.raises(MismatchError, match="pieces or scores"):
        plan_of(a, b)
    (a / "spiece.model").write_bytes(b"\x00\xff")
    plan = plan_of(a, c)
    assert plan.tokens == {"[UNK]": 0, "x": 1, "y": 2, "zebra": 3}
    assert written(plan, tmp_path / "out").tokenize("x zebra") == ["x", "zebra"]
    assert (tmp_path / "out" / "spiece.model").read_bytes() == b"\x00\xff"


SETTINGS = [
    ({"do_lower_case": False}, "normalizer.lowercase is True in a/, False in b/"),
    ({"strip_accents": False}, "normalizer.strip_accents is None in a/, False in b/"),
    ({"tokenize_chinese_chars": False}, "normalizer.handle_chinese_chars is True in a/, False in b/"),
    ({"pad_token": "[UNK]"}, r"pad_token is '\[PAD\]' in a/, '\[UNK\]' in b/"),
    ({"cls_token": "[MASK]"}, r"post_processor.single.0.SpecialToken.id is '\[CLS\]' in a/, '\[MASK\]' in b/"),
]


@pytest.mark.parametrize(("change", "said"), SETTINGS)
def test_a_setting_that_differs_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """One model's words would be read by the other's rules. One model's vocabulary can still be chosen; then it is a note."""
    a, b = wordpiece(tmp_path / "a", CLOSED), wordpiece(tmp_path / "b", [*CLOSED, "dog"], **change)
    with pytest.raises(MismatchError, match=said):
        plan_of(a, b)
    if "pad_token" not in change:  # it decides nothing but the name of a row
        assert any("tokenizers differ" in note for note in plan_of(a, b, wanted=0).notes)
    assert not any("tokenizers differ" in note for note in plan_of(a, a, wanted=0, sizes=[60, 61]).notes)


def test_a_setting_hidden_in_the_config_is_found(tmp_path: Path) -> None:
    """transformers lower-cases by tokenizer_config.json, whatever the normalizer of tokenizer.json says."""
    a, b = wordpiece(tmp_path / "a", CLOSED), wordpiece(tmp_path / "b", [*CLOSED, "dog"])
    assert plan_of(a, b).rewritten
    config = json.loads((b / "tokenizer_config.json").read_text())
    (b / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    with pytest.raises(MismatchError, match="normalizer.lowercase is True in a/, False in b/"):
        plan_of(a, b)


def test_prefix_and_byte_settings_are_named(tmp_path: Path) -> None:
    a = wordlevel(tmp_path / "a", models.WordPiece(vocab={"[UNK]": 0, "x": 1}, unk_token="[UNK]"))
    b = wordlevel(
        tmp_path / "b", models.WordPiece(vocab={"[UNK]": 0, "x": 1}, unk_token="[UNK]", continuing_subword_prefix="@@")
    )
    with pytest.raises(MismatchError, match="model.continuing_subword_prefix is '##' in a/, '@@' in b/"):
        plan_of(a, b)
    with pytest.raises(MismatchError, match="how tokens are spelled"):
        plan_of(a, b, wanted=1)
    pairs = [{"byte_fallback": flag, "unk_token": "[UNK]"} for flag in (False, True)]
    c, d = (
        wordlevel(tmp_path / name, models.BPE({"[UNK]": 0, "x": 1, w: 2}, [], **pair))
        for name, w, pair in zip("cd", "yz", pairs, strict=True)
    )
    with pytest.raises(MismatchError, match="model.byte_fallback is False in c/, True in d/"):
        plan_of(c, d)


def test_added_tokens_must_be_the_same_everywhere(tmp_path: Path) -> None:
    a = wordpiece(tmp_path / "a", CLOSED, added=[AddedToken("zebra", lstrip=True)])
    b = wordpiece(tmp_path / "b", CLOSED, added=[AddedToken("zebra", lstrip=False)])
    c = wordpiece(tmp_path / "c", [*CLOSED, "zebra"])
    d = wordpiece(tmp_path / "d", CLOSED, added=[AddedToken("zebra", special=True, normalized=False)])
    e = wordpiece(tmp_path / "e", [*CLOSED, "dog"], added=[AddedToken("zebra", lstrip=True)])
    with pytest.raises(MismatchError, match="'zebra' has lstrip True in a/, False in b/"):
        plan_of(a, b)
    for pair in ((a, c), (c, a)):
        with pytest.raises(MismatchError, match="'zebra' is an added token in a/ and an ordinary one in c/"):
            plan_of(*pair)
    with pytest.raises(MismatchError, match="'zebra' is a special token in d/ and an ordinary one in c/"):
        plan_of(c, d)
    plan = plan_of(a, e)
    assert plan.tokens["dog"] + 1 == plan.tokens["zebra"]


def test_an_added_token_of_the_first_stays_one(tmp_path: Path) -> None:
    """The second has it in its vocabulary too; there it would be found where the first never cuts (a "zebra" in capitals)."""
    token = AddedToken("zebra", special=True, normalized=False)
    a = wordpiece(tmp_path / "a", CLOSED, added=[token])
    b = wordpiece(tmp_path / "b", [*CLOSED, "zebra", "dog"], added=[token])
    plan = plan_of(a, b)
    assert "zebra" not in plan.tokenizer.vocab
    assert plan.tokens["dog"] + 1 == plan.tokens["zebra"]
    union, alone = written(plan, tmp_path / "out"), load(a)
    assert union.tokenize("ZEBRA zebra") == alone.tokenize("ZEBRA zebra") == ["z", "##e", "##b", "##r", "##a", "zebra"]
    c = bpe(tmp_path / "c", [("a", "b")])
    d = bpe(tmp_path / "d", [("a", "b"), ("c", "d")])
    for folder in (c, d):
        made = load(folder)
        made.add_tokens([AddedToken("cd", special=True, normalized=False)])
        made.save_pretrained(folder)
    with pytest.raises(MismatchError, match="the merge of 'c' and 'd' needs 'cd', which is an added token in c/"):
        plan_of(c, d)


def test_a_new_word_that_hides_the_beginning_of_another_is_refused(tmp_path: Path) -> None:
    """Longest match reads "plays" first and then knows no "##ome": without single letters a word becomes unknown."""
    a = wordpiece(tmp_path / "a", ["the", "play", "##some"])
    b = wordpiece(tmp_path / "b", ["play", "plays"])
    with pytest.raises(
        MismatchError, match=r"a text of a/ breaks: 'playsome' was play ##some and comes out as \[UNK\]"
    ):
        plan_of(a, b)
    c = wordpiece(tmp_path / "c", ["the", "play", "##some", "##o", "##m", "##e"])
    assert plan_of(c, b).rewritten


def test_gaps_in_the_ids_are_refused_in_a_union_alone(tmp_path: Path) -> None:
    """The tokenizers library counts entries to place added tokens: with a gap the next one takes an id that is in use."""
    a, b = wordpiece(tmp_path / "a", CLOSED), wordpiece(tmp_path / "b", [*CLOSED, "dog"])
    stored = json.loads((a / "tokenizer.json").read_text())
    stored["model"]["vocab"]["a"] = 99
    (a / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(MismatchError, match="the vocabulary of a/ leaves out the id 5"):
        plan_of(a, b, sizes=[100, 58])
    assert plan_of(a, a, sizes=[100, 101]).size == 100  # nothing is united
    plan = plan_of(a, b, wanted=0, sizes=[100, 58])
    assert plan.rows[1][99] == 5
    assert plan.rows[1][5] == -1


def test_a_sentencepiece_file_that_would_contradict_the_union_is_refused(tmp_path: Path) -> None:
    a, b = bpe(tmp_path / "a", [("a", "b")]), bpe(tmp_path / "b", [("c", "d")])
    assert plan_of(a, b).rewritten
    (a / "sentencepiece.bpe.model").write_bytes(b"\x00")
    with pytest.raises(MismatchError, match="sentencepiece.bpe.model of a/ cannot be rewritten"):
        plan_of(a, b)


def test_a_file_that_transformers_reads_otherwise_is_refused(tmp_path: Path) -> None:
    """A tokenizer.json without [MASK]: BertTokenizer adds one of its own, at the id where a new word would go."""
    a, b = wordpiece(tmp_path / "a", CLOSED), wordpiece(tmp_path / "b", [*CLOSED, "dog"])
    stored = json.loads((a / "tokenizer.json").read_text())
    stored["added_tokens"] = [t for t in stored["added_tokens"] if t["content"] != "[MASK]"]
    stored["model"]["vocab"]["m"] = stored["model"]["vocab"].pop("[MASK]")
    stored["model"]["vocab"].pop("z")
    stored["model"]["vocab"] = {w: i for i, w in enumerate(stored["model"]["vocab"])}
    (a / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(MismatchError, match=r"'\[MASK\]' is None in its tokenizer's files, but transformers reads"):
        plan_of(a, b, sizes=[80, 80])


# The self-check


def test_a_broken_union_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break what is about to be written in each way that the check is for: an id, a setting, a word, a template."""
    a, b = wordpiece(tmp_path / "a", ["play", "the"]), wordpiece(tmp_path / "b", ["play", "##s", "dog"])
    plan = plan_of(a, b)
    real = merge.checkpoints.tokenizers.vocabulary.file_texts
    stored = json.loads(json.dumps(plan.tokenizer.stored))

    def breaking(change: Any) -> Any:
        def texts(*arguments: Any) -> dict[str, str]:
            made = real(*arguments)
            content = {name: json.loads(text) for name, text in made.items()}
            change(content)
            return {name: json.dumps(value) for name, value in content.items()}

        return texts

    def swap(files: dict[str, Any]) -> None:
        vocab = files["tokenizer.json"]["model"]["vocab"]
        vocab["dog"], vocab["##s"] = vocab["##s"], vocab["dog"]

    def cased(files: dict[str, Any]) -> None:
        files["tokenizer_config.json"]["do_lower_case"] = False

    def nothing(files: dict[str, Any]) -> None:
        pass

    def garbled(files: dict[str, Any]) -> None:
        files["tokenizer.json"] = {"model": 1}

    ways = [(swap, "2 tokens have another id"), (cased, "normalizer.lowercase"), (garbled, "does not load")]
    for change, said in ways:
        monkeypatch.setattr("merge.checkpoints.tokenizers.vocabulary.file_texts", breaking(change))
        with pytest.raises(OutputError, match=said):
            written(plan, tmp_path / "out")
        assert tokenizer_names(tmp_path / "out") == []
    monkeypatch.setattr("merge.checkpoints.tokenizers.vocabulary.file_texts", breaking(nothing))
    assert written(plan, tmp_path / "fine").get_vocab() == plan.tokens
    # The union as it would be with `##s` for an added token: every id is right, and "plays" is unknown.
    vocab = {w: i for w, i in stored["model"]["vocab"].items() if w != "##s" and w != "dog"}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False) | {"normalized": True}
    more = [{"id": plan.tokens[w], "content": w} | flags for w in ("##s", "dog")]
    stored["model"]["vocab"], stored["added_tokens"] = vocab, [*stored["added_tokens"], *more]
    bad = parse(json.dumps(stored), a)
    assert bad.tokens == plan.tokens
    monkeypatch.setattr("merge.checkpoints.tokenizers.vocabulary.file_texts", real)
    broken = VocabularyPlan(bad, plan.parents, 0, plan.size, plan.rows)
    with pytest.raises(OutputError, match=r"'dogs' was dog ##s and comes out as dog \[UNK\]|'plays' was play ##s"):
        written(broken, tmp_path / "out")
    assert tokenizer_names(tmp_path / "out") == []


def test_the_tiny_models_own_tokenizer_is_read(tmp_path: Path) -> None:
    """The tokenizer the other tests are made with, against its entries."""
    save_tokenizer(tmp_path)
    found = read_tokenizer(tmp_path)
    assert found is not None
    assert found.tokens == {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
