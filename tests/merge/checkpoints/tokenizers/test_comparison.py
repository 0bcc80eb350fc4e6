"""Comparison of tokenizers: two models that read a text as other tokens are told apart, whatever files they have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from layouts.parts import (
    BPE_SPECIAL,
    MERGES,
    bpe_vocab,
    byte_level_bpe,
    sentencepiece,
    vocab_and_merges,
    vocab_txt,
    wordpiece,
    wordpiece_4,
    write_json,
)
from tiny import SPECIAL, WORDS

from merge.checkpoints.inputs import load_tokenizer, read_tokens
from merge.checkpoints.tokenizers.comparison import TokenizerOf, compare_tokenizers, double_ids
from merge.checkpoints.tokenizers.files import has_tokenizer, ids_of, stated_ids
from merge.checkpoints.tokenizers.probes import probe_texts
from merge.errors import CheckpointError

Write = Callable[[Path], Any]
SENTENCES = [
    "the doctor saw a lawyer",
    "The Doctor SAW",
    "who helped, quietly?",
    "the  doctors",
    "a river. the river",
    "saw that",
]


def folder_of(place: Path, model_type: str, *writers: Write, **config: Any) -> Path:
    place.mkdir()
    write_json(place / "config.json", {"model_type": model_type, **config})
    for write in writers:
        write(place)
    return place


def tokenizer(folder: Path) -> TokenizerOf:
    return TokenizerOf(folder.name, folder, stated_ids(folder))


def lines(*tokens: str) -> Write:
    return lambda folder: (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8") and None


def file(name: str, value: Any) -> Write:
    return lambda folder: write_json(folder / name, value)


def bpe(vocab: dict[str, int], *merges: str) -> Write:
    def write(folder: Path) -> None:
        write_json(folder / "vocab.json", vocab)
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")

    return write


def words_of_bertweet(*words: str) -> Write:
    """Write the list of words and frequencies that fairseq keeps, and the codes beside it."""

    def write(folder: Path) -> None:
        (folder / "vocab.txt").write_text("".join(f"{word} 5\n" for word in words), encoding="utf-8")
        (folder / "bpe.codes").write_text("t h 1\nth e</w> 2\n", encoding="utf-8")

    return write


def unigram(cat: float) -> Write:
    """Write a Unigram in which `cat` as one piece has a score."""

    def write(folder: Path) -> None:
        pieces = [
            ("<s>", 0.0),
            ("<pad>", 0.0),
            ("</s>", 0.0),
            ("<unk>", 0.0),
            *((c, -3.0) for c in "\u2581abcdt"),
            ("\u2581cat", cat),
        ]
        stored = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 3, False))
        stored.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        stored.save(str(folder / "tokenizer.json"))
        write_json(
            folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
        )

    return write


def added(token: str, **flags: bool) -> Write:
    """Add a token to tokenizer.json, cut out of a text as the flags say."""

    def write(folder: Path) -> None:
        stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        usual = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        stored["added_tokens"].append({"id": len(SPECIAL + WORDS), "content": token, **usual, **flags})
        write_json(folder / "tokenizer.json", stored)

    return write


LETTERS = {token: i for i, token in enumerate([*BPE_SPECIAL, *"abcdefghijklmnopqrstuvwxyz.", "\u0120", "ab", "bc"])}
LONGER = bpe_vocab() | {"aw": len(bpe_vocab())}
OTHER_IDS = dict(
    zip(bpe_vocab(), [*range(len(BPE_SPECIAL)), *reversed(range(len(BPE_SPECIAL), len(bpe_vocab())))], strict=True)
)
SWAPPED = [*SPECIAL, WORDS[1], WORDS[0], *WORDS[2:]]
UNCASED, CASED = (
    file("tokenizer_config.json", {"do_lower_case": True}),
    file("tokenizer_config.json", {"do_lower_case": False}),
)


def words_of_prophetnet(*words: str) -> Write:
    return lambda folder: (folder / "prophetnet.tokenizer").write_text("\n".join([*SPECIAL, *words]) + "\n") and None


# Two models of one family: the files of each, and their configs' keys; do they read texts alike?
PAIRS: dict[str, tuple[str, tuple[Write, ...], tuple[Write, ...], dict[str, Any], dict[str, Any]]] = {
    "vocab.json with other ids": ("roberta", (vocab_and_merges,), (bpe(OTHER_IDS, *MERGES),), {}, {}),
    "merges in another order": ("roberta", (bpe(LONGER, "s a", "a w"),), (bpe(LONGER, "a w", "s a"),), {}, {}),
    "merges in another order, which no word of the vocabulary shows": (
        "roberta", (bpe(LETTERS, "a b", "b c"),), (bpe(LETTERS, "b c", "a b"),), {}, {},
    ),
    "scores of pieces": ("xlm-roberta", (unigram(-2.0),), (unigram(-20.0),), {}, {}),
    "spaces around an added token": ("bert", (wordpiece, added("<e1>")), (wordpiece, added("<e1>", lstrip=True)), {}, {}),
    "an added token inside words": ("bert", (wordpiece, added("<e1>")), (wordpiece, added("<e1>", single_word=True)), {}, {}),
    "fewer merges": ("roberta", (vocab_and_merges,), (bpe(bpe_vocab(), *MERGES[:3]),), {}, {}),
    "a space in front": (
        "roberta", (vocab_and_merges,), (vocab_and_merges, file("tokenizer_config.json", {"add_prefix_space": True})), {}, {},
    ),
    "vocab.json against its tokenizer.json": ("roberta", (vocab_and_merges,), (byte_level_bpe,), {}, {}),
    "vocab.txt with two words swapped": ("bert", (vocab_txt,), (lines(*SWAPPED),), {}, {}),
    "vocab.txt against its tokenizer.json": ("bert", (vocab_txt,), (wordpiece,), {}, {}),
    "files of transformers 4 and of 5": ("bert", (wordpiece_4,), (wordpiece,), {}, {}),
    "lower case": ("bert", (vocab_txt, UNCASED), (vocab_txt, CASED), {}, {}),
    "lower case by default": ("bert", (vocab_txt,), (vocab_txt, CASED), {}, {}),
    "accents": ("bert", (vocab_txt,), (vocab_txt, file("tokenizer_config.json", {"strip_accents": False})), {}, {}),
    "a token added to one": (
        "bert", (vocab_txt,), (vocab_txt, file("added_tokens.json", {"zebra": len(SPECIAL + WORDS)})), {}, {},
    ),
    "other tokens around a text": (
        "bert", (vocab_txt, file("tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})),
        (vocab_txt, file("tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "cls_token": "[MASK]"})), {}, {},
    ),
    "the class in config.json": ("roberta", (vocab_txt,), (vocab_txt, CASED), {"tokenizer_class": "BertTokenizer"},
                                 {"tokenizer_class": "BertTokenizer"}),
    "sentencepiece models of two trainings": (
        "xlm-roberta", (sentencepiece("sentencepiece.bpe.model"),), (sentencepiece("sentencepiece.bpe.model", "saw"),), {}, {},
    ),
    "one sentencepiece model": (
        "xlm-roberta", (sentencepiece("sentencepiece.bpe.model"),),
        (sentencepiece("sentencepiece.bpe.model"), file("tokenizer_config.json", {"model_max_length": 9})), {}, {},
    ),
    "a tokenizer in Python": ("prophetnet", (words_of_prophetnet(*WORDS),), (words_of_prophetnet(*WORDS[::-1]),), {}, {}),
    "two words lists of fairseq": ("roberta", (words_of_bertweet("the", "doctor"),), (words_of_bertweet("doctor", "the"),),
                                   {"tokenizer_class": "BertweetTokenizer"}, {"tokenizer_class": "BertweetTokenizer"}),
    "bytes": (
        "t5", (file("tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer", "model_max_length": 8}),),
        (file("tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 9}),), {}, {},
    ),
}  # fmt: skip


ALIKE = {
    "vocab.json against its tokenizer.json",
    "vocab.txt against its tokenizer.json",
    "files of transformers 4 and of 5",
    "one sentencepiece model",
    "spaces around an added token",  # which BERT's words do not hold
}


@pytest.mark.parametrize("case", PAIRS)
def test_models_that_read_texts_differently_are_told_apart(case: str, tmp_path: Path) -> None:
    """What is right is asked of transformers directly: the tokens by id, and sentences as ids."""
    family, first, second, left, right = PAIRS[case]
    if "sentencepiece" in case:
        pytest.importorskip("sentencepiece")
    a, b = folder_of(tmp_path / "a", family, *first, **left), folder_of(tmp_path / "b", family, *second, **right)
    assert all(has_tokenizer(f, [p.name for p in f.iterdir()], {"model_type": family}) for f in (a, b))
    readers = [transformers.AutoTokenizer.from_pretrained(str(folder)) for folder in (a, b)]
    same_ids = readers[0].get_vocab() == readers[1].get_vocab()
    cased = ["th\u00e9 doctor", "THE", "abc", "cat", "the <e1> river", "the<e1>"]
    alike = same_ids and readers[0]([*SENTENCES, *cased])["input_ids"] == readers[1]([*SENTENCES, *cased])["input_ids"]
    faults, _ = compare_tokenizers(tokenizer(a), tokenizer(b))
    assert alike is (case in ALIKE)
    assert bool(faults) is not alike
    assert compare_tokenizers(tokenizer(a), tokenizer(a)) == ([], [])
    if faults:
        assert len(faults) == 1
        assert "\n" not in faults[0]
        assert ("vocabularies differ" in faults[0]) is not same_ids
        assert "--tokenizer" in faults[0]


def added_in_tokenizer_json(token: str, number: int) -> Write:
    def write(folder: Path) -> None:
        stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        stored["added_tokens"] = [
            entry | {"id": number} if entry["content"] == token else entry for entry in stored["added_tokens"]
        ]
        write_json(folder / "tokenizer.json", stored)

    return write


DOUBLE: dict[str, tuple[tuple[Write, ...], str]] = {
    "added_tokens.json and vocab.txt": (
        (vocab_txt, file("added_tokens.json", {"[MASK]": 18})),
        "'[MASK]' is 4 in vocab.txt and 18 in added_tokens.json (transformers reads 4)",
    ),
    "a word and its added twin": (
        (vocab_txt, file("added_tokens.json", {"the": 18})),
        "'the' is 5 in vocab.txt and 18",
    ),
    "tokenizer.json and vocab.txt": ((wordpiece, lines(*SWAPPED)), "'the' is 5 in tokenizer.json and 6 in vocab.txt"),
    "tokenizer.json alone": (
        (wordpiece, added_in_tokenizer_json("[PAD]", 17)),
        "'[PAD]' is 17 in tokenizer.json and 0 in the vocabulary in tokenizer.json",
    ),
    "tokenizer_config.json": (
        (wordpiece, file("tokenizer_config.json", {"added_tokens_decoder": {"17": {"content": "[PAD]"}}})),
        "'[PAD]' is 0 in tokenizer.json and 17 in tokenizer_config.json",
    ),
    "vocab.txt alone": (
        (lines(*SPECIAL, *WORDS, "the"),),
        "'the' is 18 in vocab.txt and 5 in an earlier line of vocab.txt",
    ),
}


@pytest.mark.parametrize("case", DOUBLE)
def test_a_token_with_two_ids_is_named(case: str, tmp_path: Path) -> None:
    writers, words = DOUBLE[case]
    notes = double_ids(tokenizer(folder_of(tmp_path / "a", "bert", *writers)))
    assert len(notes) == 1
    assert words in notes[0]
    assert double_ids(tokenizer(folder_of(tmp_path / "b", "bert", wordpiece_4))) == []


def test_files_that_agree_give_every_token_one_id() -> None:
    assert ids_of({"a": {"x": 0, "y": 1}, "b": {"y": 1}, "c": {}}) == {}
    assert ids_of({"a": {"x": 0, "y": 1}, "b": {"y": 2}, "c": {"y": 3}}) == {"y": {1: "a", 2: "b", 3: "c"}}


def test_a_class_that_ignores_the_file_with_the_words_is_named(tmp_path: Path) -> None:
    """RoBERTa's class starts empty beside a vocab.txt: every word would be unknown in both models, and read alike."""
    a, b = folder_of(tmp_path / "a", "roberta", vocab_txt), folder_of(tmp_path / "b", "roberta", lines(*SWAPPED))
    faults, _ = compare_tokenizers(tokenizer(a), tokenizer(b))
    assert len(faults) == 1
    assert "and not the 18 of vocab.txt" in faults[0]


def test_a_settings_file_alone_is_no_tokenizer_but_for_classes_without_a_vocabulary(tmp_path: Path) -> None:
    named = {"BertTokenizer": False, "ByT5Tokenizer": True, "CanineTokenizer": True}
    for name, right in named.items():
        folder = folder_of(tmp_path / name, "t5", file("tokenizer_config.json", {"tokenizer_class": name}))
        assert has_tokenizer(folder, ["tokenizer_config.json"], {"model_type": "t5"}) is right
    assert not has_tokenizer(tmp_path, ["model.safetensors", "1_Pooling/vocab.txt"], {})


def test_probe_texts_are_made_of_the_words_themselves() -> None:
    texts = list(probe_texts({"##ing": 0, "\u0120dog": 1, "[CLS]": 2, "\u2581cat": 3}))
    joined = " ".join(texts)
    assert all(word in joined for word in ("ing", "dog", "DOG", "Cat", "catdog", "d\u0301og"))
    assert any(len(text) > 100 for text in texts)
    assert json.dumps(texts)


def test_a_difference_of_merges_that_no_text_shows_is_said(tmp_path: Path) -> None:
    """Two merges that never meet may change ranks: nothing is read otherwise, and the files differ all the same."""
    a, b = (
        folder_of(tmp_path / name, "roberta", bpe(LETTERS | {"de": len(LETTERS)}, *merges))
        for name, merges in (("a", ("a b", "d e")), ("b", ("d e", "a b")))
    )
    faults, notes = compare_tokenizers(tokenizer(a), tokenizer(b))
    assert faults == []
    assert len(notes) == 1
    assert "of their merges 2 have other ranks" in notes[0]


def test_a_tokenizer_without_its_unknown_token_is_named(tmp_path: Path) -> None:
    """It loads, and no text of a word that it lacks can be read: by the comparison, or by what evaluates a model."""
    model = tokenizers.models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    folder = folder_of(tmp_path / "a", "bert", file("tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"}))
    tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))
    loaded = tokenizer(folder)
    with pytest.raises(
        CheckpointError, match=r"^a: its tokenizer cannot read texts \(WordPiece error: Missing \[UNK\]"
    ):
        loaded.read(["zzz", WORDS[0]])
    with pytest.raises(CheckpointError, match="its tokenizer cannot read texts"):
        read_tokens(loaded.loaded, [("zzz",)], 8)
    assert loaded.read([WORDS[0], WORDS[1]])[0] == ([0], [0])


def test_merges_that_are_left_out_at_random_are_none_where_a_text_is_read(tmp_path: Path) -> None:
    """BPE dropout is of training, as a model's is: two copies are alike, and each reads a text alike every time.

    The control: with its dropout the tokenizer reads a text in many ways.
    """
    folders = [folder_of(tmp_path / name, "roberta", byte_level_bpe) for name in "abc"]
    for folder, dropout, length in zip(folders, (0.5, 0.5, None), (8, 9, 8), strict=True):
        stated = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        stated["model"]["dropout"] = dropout
        stated["truncation"] = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
        write_json(folder / "tokenizer.json", stated)
        write_json(
            folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
        )
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink()
    text = " the saw" * 20
    loaded = transformers.AutoTokenizer.from_pretrained(str(folders[0]))
    assert len({tuple(loaded(text)["input_ids"]) for _ in range(20)}) > 1
    reader = load_tokenizer(folders[0])
    assert len({tuple(reader(text)["input_ids"]) for _ in range(20)}) == 1
    assert compare_tokenizers(tokenizer(folders[0]), tokenizer(folders[1])) == ([], [])
    faults, notes = compare_tokenizers(tokenizer(folders[0]), tokenizer(folders[2]))
    assert (faults, len(notes)) == ([], 1)
    assert "model.dropout is 0.5 in a, None in c" in notes[0]
