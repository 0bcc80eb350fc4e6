"""Vocabularies trimmed to a text: the same tokens and the same outputs for it, and nothing else becomes unreadable."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import family_case
from families_more import GPT2
from quick import quick_on
from safetensors.torch import load_file
from sentence import TEXTS, needs_library, save_sentence
from tiny import save_checkpoint
from torch import Tensor

from merge.checkpoints.open import open_checkpoint
from merge.errors import CalibrationError, CheckpointError, OutputError, UsageError
from merge.layers.pruning.embeddings import prune_embeddings
from merge.layers.pruning.tokens import kept_tokens, trimmed
from merge.text.source import TextSource

SENTENCES = [
    "the doctors were helping a lawyer near the rivers",
    "whoever walked quietly saw the lawyers and the doctor",
    "a river is near , and the walkers help it quietly",
    "unhelpful lawyers walked the longest rivers ; doctors wondered",
    "wandering walkers wonder whether doctors are helpful",
] * 4
KEPT = ["the doctor saw a river", "a walker helped the doctors quietly"]
WORDPIECE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OTHER = ["wandering lawyers wonder", "the longest rivers ; helpful", "z q x j"]


@cache
def _trained(kind: str) -> str:
    """Return the tokenizer.json of a small tokenizer of each kind, special tokens in the places of its family."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = list("abcdefghijklmnopqrstuvwxyz,;")
    trainer: Any = None
    if kind == "wordpiece":
        words = sorted({word for line in SENTENCES for word in line.split() if word not in letters})
        entries = [*WORDPIECE, *letters, *(f"##{letter}" for letter in letters), *words, "##ing", "##ers", "##ed"]
        vocabulary = {token: i for i, token in enumerate(entries)}
        backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.add_special_tokens(WORDPIECE)
        ends = ("[CLS]", "[SEP]")
    elif kind == "unigram":
        backend = tokenizers.Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=special, unk_token="<unk>", initial_alphabet=letters, show_progress=False
        )
        ends = ("<s>", "</s>")
    else:
        ended = kind == "bpe ended"
        suffix: Any = {"end_of_word_suffix": "</w>"} if ended else {}
        backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", **suffix))
        backend.pre_tokenizer = (
            pre_tokenizers.Whitespace() if ended else pre_tokenizers.ByteLevel(add_prefix_space=False)
        )
        backend.decoder = decoders.BPEDecoder() if ended else decoders.ByteLevel()
        alphabet = letters if ended else pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=220 if ended else 400,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
            **suffix,
        )
        ends = ("<s>", "</s>")
    if trainer is not None:
        backend.train_from_iterator(SENTENCES, trainer)
    ids = {token: backend.token_to_id(token) for token in ends}
    backend.post_processor = processors.TemplateProcessing(
        single=f"{ends[0]} $A {ends[1]}",
        pair=f"{ends[0]} $A {ends[1]} $B:1 {ends[1]}:1",
        special_tokens=list(ids.items()),
    )
    return str(backend.to_str())


# Kind of tokenizer -> config of the model that it belongs to.
MODELS: dict[str, Callable[[int], dict[str, Any]]] = {
    "wordpiece": lambda size: family_case("bert", "ForMaskedLM", vocab_size=size, pad_token_id=0),
    "bpe": lambda size: family_case("roberta", "ForMaskedLM", vocab_size=size),
    "bpe ended": lambda size: {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **GPT2,
        "vocab_size": size,
    },
    "unigram": lambda size: family_case("xlm-roberta", "ForMaskedLM", vocab_size=size),
}


def model_with(kind: str, folder: Path, rows: int = 0, **changes: Any) -> Path:
    """Write a tiny language model with a tokenizer of a kind, and rows beyond its tokens."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(_trained(kind))
    size = backend.get_vocab_size() + rows
    save_checkpoint(folder, MODELS[kind](size) | changes, tokenizer=False)
    names = (
        ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")
        if kind == "wordpiece"
        else ("<unk>", "<pad>", "<s>", "</s>", "<mask>")
    )
    roles = ("unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, **dict(zip(roles, names, strict=True))
    ).save_pretrained(folder)
    return folder


def text_file(path: Path, lines: list[str]) -> TextSource:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return TextSource(str(path))


def tokens(folder: Path, texts: list[str]) -> list[list[str]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) for text in texts]


def run(folder: Path, texts: list[str]) -> tuple[Any, list[dict[str, Tensor]]]:
    """Return the model of a folder, and its outputs for each text as its own tokenizer reads it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    masked = "ForMaskedLM" in (folder / "config.json").read_text(encoding="utf-8")
    cls = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    for parameter in model.parameters():  # products are rounded by where a weight begins in memory
        parameter.data = parameter.data.clone()
    with torch.inference_mode():
        found = [model.eval()(**tokenizer(text, return_tensors="pt"), output_hidden_states=True) for text in texts]
    return model, [{"states": torch.stack(one["hidden_states"]), "logits": one["logits"]} for one in found]


@pytest.mark.parametrize("kind", quick_on(("wordpiece",), MODELS))
def test_the_text_has_the_same_tokens_and_the_same_outputs(kind: str, tmp_path: Path) -> None:
    """Hidden states bit for bit; logits are those of the tokens that stay. The control: a row moved changes states."""
    folder = model_with(kind, tmp_path / "m")
    report = prune_embeddings(open_checkpoint(str(folder)), text_file(tmp_path / "t.txt", KEPT), tmp_path / "out")
    old_words = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    new_words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert len(new_words) < len(old_words)
    assert tokens(tmp_path / "out", KEPT) == tokens(folder, KEPT)
    big, before = run(folder, KEPT)
    small, after = run(tmp_path / "out", KEPT)
    rows = torch.tensor([old_words[word] for word, _ in sorted(new_words.items(), key=lambda item: item[1])])
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one["states"], two["states"])
        assert float((one["logits"][..., rows] - two["logits"]).abs().max()) < 1e-5
    assert small.config.vocab_size == len(new_words) == report.pruned.facts["vocab_size"]
    table, whole = (model.get_input_embeddings().weight for model in (small, big))
    assert torch.equal(table, whole[rows])
    with torch.no_grad():
        table[:] = table.roll(1, 0)
    text = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(KEPT[0], return_tensors="pt")
    assert not torch.equal(small(**text, output_hidden_states=True)["hidden_states"][-1], after[0]["states"][-1])


@pytest.mark.parametrize("kind", quick_on(("wordpiece", "bpe"), MODELS))
def test_other_texts_are_read_in_smaller_pieces_and_nothing_becomes_unknown(kind: str, tmp_path: Path) -> None:
    """The control: without the tokens of one character the same words are unknown, or end where they cannot."""
    from merge.checkpoints.tokenizers.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(model_with(kind, tmp_path / "m"))
    assert tokenizer is not None
    backend = tokenizer.backend()
    used = {i for text in KEPT for i in backend.encode(text).ids}
    small = trimmed(tokenizer, kept_tokens(tokenizer, used).tokens)[0].backend()
    unknown = tokenizer.stored["model"].get("unk_token") or "<unk>"
    known = [text for text in OTHER if unknown not in backend.encode(text).tokens]
    assert len(known) >= 2
    for text in known:
        assert unknown not in small.encode(text).tokens
        assert len(small.encode(text).ids) >= len(backend.encode(text).ids)
    assert sum(len(small.encode(t).ids) for t in known) > sum(len(backend.encode(t).ids) for t in known)
    if kind == "wordpiece":
        words = {t for t in tokenizer.vocab if tokenizer.tokens[t] in used} | {"[UNK]"}
        bare = trimmed(tokenizer, words | tokenizer.added.keys())[0].backend()
        assert any("[UNK]" in bare.encode(text).tokens for text in known)


def test_the_merges_of_a_text_are_those_that_its_tokens_need(tmp_path: Path) -> None:
    """Every merge of two kept tokens into a kept one stays, in its order; tokens that merges pass through are kept."""
    from merge.checkpoints.tokenizers.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(model_with("bpe", tmp_path / "m"))
    assert tokenizer is not None
    used = {i for text in KEPT for i in tokenizer.backend().encode(text).ids}
    kept = kept_tokens(tokenizer, used)
    assert kept.reasons["steps of merges"] > 0
    result, rows = trimmed(tokenizer, kept.tokens)
    whole = [pair for pair in tokenizer.merges if {*pair, "".join(pair)} <= kept.tokens]
    assert result.merges == whole
    assert rows == sorted(rows)
    without = kept.tokens - {"".join(pair) for pair in whole if "".join(pair) not in _used(tokenizer, used)}
    broken = trimmed(tokenizer, without)[0].backend()
    assert any(broken.encode(t).tokens != tokenizer.backend().encode(t).tokens for t in KEPT)


def _used(tokenizer: Any, used: set[int]) -> set[str]:
    return {token for token, i in tokenizer.tokens.items() if i in used}


def test_the_score_of_unknown_characters_stays_what_it_was(tmp_path: Path) -> None:
    """It is the lowest score of a Unigram less ten, so the piece with that score stays, whatever the text is."""
    from merge.checkpoints.tokenizers.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(model_with("unigram", tmp_path / "m"))
    assert tokenizer is not None
    small, _ = trimmed(tokenizer, kept_tokens(tokenizer, set()).tokens)
    lowest = [min(score for _, score in each.stored["model"]["vocab"]) for each in (tokenizer, small)]
    assert lowest[0] == lowest[1]


def test_ids_in_configs_follow_and_rows_without_a_token_go(tmp_path: Path) -> None:
    folder = model_with("wordpiece", tmp_path / "m", rows=7, bos_token_id=70, eos_token_id=[2, 71])
    generation = {"eos_token_id": 71, "suppress_tokens": [2, 80, 71], "_from_model_config": True}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    old = transformers.AutoTokenizer.from_pretrained(folder)
    report = prune_embeddings(open_checkpoint(str(folder)), text_file(tmp_path / "t.txt", KEPT), tmp_path / "out")
    new = transformers.AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    expected = [new[old.convert_ids_to_tokens(i)] for i in (70, 2, 71)]
    assert [config["bos_token_id"], *config["eos_token_id"]] == expected
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert written["eos_token_id"] == expected[2]
    assert written["suppress_tokens"][0] == 2
    assert len(written["suppress_tokens"]) == 2 + (old.convert_ids_to_tokens(80) in new)
    assert config["vocab_size"] == len(new)
    assert any("7 of the embedding rows had no token" in line for line in report.pruned.lines)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["cls.predictions.bias"].shape == (len(new),)


@needs_library
@pytest.mark.slow
def test_a_sentence_transformers_folder_keeps_working(tmp_path: Path) -> None:
    """Loaded by the library, it embeds the text as before, bit for bit."""
    from sentence_transformers import SentenceTransformer

    folder = save_sentence(tmp_path / "m")
    texts = TEXTS[:2]
    report = prune_embeddings(
        open_checkpoint(str(folder)), text_file(tmp_path / "t.txt", texts), tmp_path / "out", True
    )
    assert any("are read as unknown" in note for note in report.notes)
    embedded = []
    for place in (folder, tmp_path / "out"):
        model = SentenceTransformer(str(place), device="cpu")
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        embedded.append(torch.tensor(model.encode(texts)))
    assert torch.equal(*embedded)
    assert (tmp_path / "out" / "modules.json").read_bytes() == (folder / "modules.json").read_bytes()


def test_what_cannot_be_trimmed_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    folder = model_with("wordpiece", tmp_path / "m")
    everything = text_file(
        tmp_path / "all.txt", [" ".join(transformers.AutoTokenizer.from_pretrained(folder).get_vocab())]
    )
    bare = save_checkpoint(tmp_path / "bare", MODELS["bpe"](20), tokenizer=False)
    reads_letters = save_checkpoint(tmp_path / "closed")  # a vocabulary of words, whose letters have no tokens
    faults: list[tuple[Path, TextSource, type[Exception], str]] = [
        (bare, everything, UsageError, "has no tokenizer"),
        (folder, TextSource(str(tmp_path / "none.txt")), CalibrationError, "none.txt"),
        (
            reads_letters,
            text_file(tmp_path / "t.txt", ["the doctor"]),
            UsageError,
            "as they alone have a character; --allow-unknown",
        ),
    ]
    for model, source, error, message in faults:
        with pytest.raises(error, match=message) as raised:
            prune_embeddings(open_checkpoint(str(model)), source, tmp_path / "out")
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_reads_the_text_otherwise_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the proof: a token of the text that is left out is caught."""
    from merge.layers.pruning import embeddings as module

    def without_one(tokenizer: Any, used: set[int], below: int, allow_unknown: bool) -> Any:
        kept = kept_tokens(tokenizer, used, below, allow_unknown)
        return type(kept)(kept.tokens - {"doctor", "quietly"}, kept.reasons)

    monkeypatch.setattr(module, "kept_tokens", without_one)
    folder = model_with("wordpiece", tmp_path / "m")
    with pytest.raises((OutputError, CheckpointError), match="the trimmed tokenizer reads '.*' as other tokens"):
        prune_embeddings(open_checkpoint(str(folder)), text_file(tmp_path / "t.txt", KEPT), tmp_path / "out")
    assert not (tmp_path / "out").exists()
