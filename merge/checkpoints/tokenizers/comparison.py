"""Comparison of tokenizers: whether two models read every text as the same tokens, as transformers loads them.

Equal files are equal tokenizers. Others are loaded and compared token by id, then by what they do to texts made of their own
words: case, accents, spaces, joined and long words, special tokens, pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from merge.checkpoints.structure import transformers_build
from merge.checkpoints.tokenizers.files import (
    has_tokenizer,
    ids_of,
    read_object,
    stated_ids,
    tokenizer_names,
)
from merge.checkpoints.tokenizers.probes import Tables, probe_texts, table_differences, tables_of
from merge.checkpoints.tokenizers.tokenizer import Tokenizer, load_any, reading_texts, without_dropout
from merge.checkpoints.tokenizers.union import setting_differences
from merge.disk.cache import cache_key, read_cached, write_cached
from merge.disk.documents import parse_json
from merge.disk.hashes import file_hash
from merge.errors import CheckpointError, brief, some

CHOOSE = "Choose one: --tokenizer reference or a model."
# Keys of tokenizer_config.json that decide no id: paths, lengths, sides, and what is done after the model.
HARMLESS = frozenset(
    {
        "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "model_max_length", "max_length",
        "max_len", "padding", "padding_side", "truncation", "truncation_side", "truncation_strategy", "stride",
        "pad_to_multiple_of", "pad_token_type_id", "clean_up_tokenization_spaces", "is_local", "local_files_only",
        "backend", "processor_class", "chat_template", "from_slow", "use_fast", "errors", "trust_remote_code",
        "_commit_hash", "init_inputs",
    }
)  # fmt: skip
EVERY_CHARACTER = ("CanineTokenizer",)
NOT_COMPARED = ("tokenizer_config.json", "special_tokens_map.json")
FORMAT = 2


@dataclass(frozen=True)
class TokenizerOf:
    """The tokenizer of a checkpoint: what its files state, and what transformers loads.

    Attributes:
        source: the checkpoint as the user named it.
        stated: file -> token -> id.
    """

    source: str
    folder: Path
    stated: Mapping[str, Mapping[str, int]]
    _kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def digest(self) -> str:
        """A hash of everything that transformers reads a tokenizer from."""
        config = read_object(self.folder / "config.json")
        hashes = {name: file_hash(self.folder / name) for name in tokenizer_names(self.folder)}
        return cache_key(hashes, config.get("tokenizer_class"), config.get("model_type"))

    @property
    def loaded(self) -> Any:
        """The tokenizer as transformers loads it.

        Raises:
            CheckpointError: transformers does not load it, or reads other ids from a file than the file states.
        """
        if "loaded" not in self._kept:
            self._kept["loaded"] = load_any(self.folder)
        return self._kept["loaded"]

    @property
    def tokens(self) -> Mapping[str, int]:
        """Token -> id as transformers loads them; empty for a class to which every character is its own id."""
        if "tokens" not in self._kept:
            every = type(self.loaded).__name__ in EVERY_CHARACTER
            self._kept["tokens"] = {} if every else dict(self.loaded.get_vocab())
            self._check_stated()
        tokens: Mapping[str, int] = self._kept["tokens"]
        return tokens

    def _check_stated(self) -> None:
        """Stop where a class ignores the file with the vocabulary, and starts empty."""
        main = max(self.stated, key=lambda name: len(self.stated[name]), default=None)
        words = self.stated[main] if main else {}
        absent = [word for word in words if word not in self._kept["tokens"]]
        if main in ("tokenizer.json", "vocab.txt", "vocab.json") and len(absent) > len(words) / 2:
            spaced = sum(" " in word for word in absent)  # fairseq's lists of words and their frequencies
            if spaced < len(absent) / 2:
                raise CheckpointError(
                    f"{self.source}: transformers ({type(self.loaded).__name__}) reads {len(self._kept['tokens'])} tokens, "
                    f"and not the {len(words)} of {main}. Is the tokenizer_class the one this file is for?"
                )

    @cached_property
    def record(self) -> Tokenizer | None:
        """Everything that the tokenizers library runs; None of a tokenizer in Python."""
        if not getattr(self.loaded, "is_fast", False):
            return None
        text = self.loaded.backend_tokenizer.to_str()
        return Tokenizer(self.folder, parse_json(text, f"{self.source}: its tokenizer", CheckpointError, nul=True))

    @property
    def tables(self) -> Tables:
        """What it looks up beside its vocabulary; of a tokenizer in Python its merges alone."""
        if self.record is not None:
            return tables_of(self.record)
        ranks = getattr(self.loaded, "bpe_ranks", {})
        return Tables(merges=sorted(ranks, key=ranks.__getitem__))

    @property
    def settings(self) -> dict[str, Any]:
        """What decides how a text becomes tokens, by name; of a tokenizer in Python its class and arguments."""
        if self.record is not None:
            return self.record.settings
        stated = {k: v for k, v in self.loaded.init_kwargs.items() if k not in HARMLESS and not k.endswith("_file")}
        return {"class": type(self.loaded).__name__} | {k: str(v) for k, v in stated.items()}

    def read(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Return ids and segments of each text, alone, and of the first two as a pair."""
        # The record comes first: it is of the tokenizer as it is stored.
        loaded = self.loaded if self.record is None else without_dropout(self.loaded)
        with reading_texts(self.source):
            singles = [loaded(text) for text in texts]
            pair = loaded(texts[0], texts[1])
        return [
            (list(each["input_ids"]), list(each.get("token_type_ids") or [0] * len(each["input_ids"])))
            for each in (*singles, pair)
        ]


def tokenizer_of(source: str, folder: Path, config: Mapping[str, Any]) -> TokenizerOf | None:
    """Return the tokenizer of a checkpoint's folder; None where it has none.

    Args:
        source: the checkpoint as the user named it.
        config: its config.json.
    Raises:
        MismatchError, CheckpointError: a file of it is malformed.
    """
    names = tokenizer_names(folder)
    if not names or not has_tokenizer(folder, names, config):
        return None
    return TokenizerOf(source, folder, stated_ids(folder))


def double_ids(tokenizer: TokenizerOf) -> list[str]:
    """Return a note where files of one tokenizer give a token several ids."""
    several = ids_of(tokenizer.stated)
    if not several:
        return []
    try:
        read: Mapping[str, int] = tokenizer.tokens
    except CheckpointError:
        read = {}
    shown = [
        f"{token!r} is {' and '.join(f'{i} in {file}' for i, file in ids.items())}"
        + (f" (transformers reads {read[token]})" if token in read else "")
        for token, ids in several.items()
    ]
    return [f"{tokenizer.source}: its tokenizer's files give a token two ids: {some(shown, 2, separator='; ')}"]


def compare_tokenizers(a: TokenizerOf, b: TokenizerOf) -> tuple[list[str], list[str]]:
    """Return (faults, notes): how the tokens that two models read in a text differ."""
    if a.folder == b.folder or _alike_on_disk(a.folder, b.folder):
        return [], []
    left, right = (each.stated.get("tokenizer.json") for each in (a, b))
    if left is not None and right is not None:
        if left != right:
            return [_moved(left, right, a.source, b.source)], []
        if _normalizer(a.folder) != _normalizer(b.folder):
            return [f"tokenizers differ in their normalizer (lower-casing?): {a.source} and {b.source}. {CHOOSE}"], []
    key = cache_key(FORMAT, transformers_build(), a.digest, b.digest)
    if read_cached("tokenizers", key) is True:
        return [], []
    try:
        faults, notes = _compare_loaded(a, b)
    except CheckpointError as error:
        if left is not None and left == right:
            return [], [f"tokenizers of {a.source} and {b.source} were compared by tokenizer.json alone: {error}"]
        return [f"tokenizers cannot be compared: {error} Mend it, or take its tokenizer files out of the folder."], []
    if not faults and not notes:
        write_cached("tokenizers", key, True)
    return faults, notes


def _alike_on_disk(a: Path, b: Path) -> bool:
    """Return whether two folders have the same tokenizer files, but for settings that decide no id."""
    names = tokenizer_names(a)
    if names != tokenizer_names(b) or _stated_class(a) != _stated_class(b):
        return False
    if any((a / name).read_bytes() != (b / name).read_bytes() for name in names if name not in NOT_COMPARED):
        return False
    return all(_deciding(a / name) == _deciding(b / name) for name in NOT_COMPARED if name in names)


def _deciding(path: Path) -> dict[str, Any]:
    settings = {k: v for k, v in read_object(path).items() if k not in HARMLESS}
    if "tokenizer_class" in settings:
        settings["tokenizer_class"] = str(settings["tokenizer_class"]).removesuffix("Fast")
    return settings


def _stated_class(folder: Path) -> tuple[Any, Any]:
    config = read_object(folder / "config.json")
    return config.get("tokenizer_class"), config.get("model_type")


def _normalizer(folder: Path) -> Any:
    return read_object(folder / "tokenizer.json").get("normalizer")


def _moved(left: Mapping[str, int], right: Mapping[str, int], a: str, b: str) -> str:
    moved = [word for word in {**left, **right} if left.get(word) != right.get(word)]
    word = moved[0]
    shown = f"{word!r} is {_row(left, word)} in {a}, {_row(right, word)} in {b}"
    return (
        f"vocabularies differ: {len(moved)} entries of {a} and {b} are in one alone, or elsewhere in the other ({shown}). "
        "Rows of the embedding tables would mean different words. Choose one: --tokenizer union, reference or a model."
    )


def _row(tokens: Mapping[str, int], word: str) -> str:
    return str(tokens[word]) if word in tokens else "absent"


def _compare_loaded(a: TokenizerOf, b: TokenizerOf) -> tuple[list[str], list[str]]:
    # Classes trim what they read of vocab.txt: a token that is a kind of space has another spelling, and the same row.
    if any(word.strip() for word, _ in a.tokens.items() ^ b.tokens.items()):
        return [_moved(a.tokens, b.tokens, a.source, b.source)], []
    differences = setting_differences(a.settings, b.settings, a.source, b.source)
    phrases, made = table_differences(a.tables, b.tables)
    reason = some([*phrases, *differences.values()], 2, separator="; ")
    texts = [*probe_texts(a.tokens), *made]
    for k, (left, right) in enumerate(zip(a.read(texts), b.read(texts), strict=True)):
        if left == right:
            continue
        text = texts[k] if k < len(texts) else f"{texts[0]} | {texts[1]}"
        part = int(left[0] == right[0])  # ids, or only segments
        shown = [f"{'segments ' * part}{brief(' '.join(map(str, side[part])), 40)}" for side in (left, right)]
        return [
            f"tokenizers of {a.source} and {b.source} read texts differently: {brief(text)!r} is {shown[0]} by the first, "
            f"{shown[1]} by the second{f' ({reason})' if reason else ''}. {CHOOSE}"
        ], []
    if not reason:
        return [], []
    return [], [f"tokenizers state other settings, though {len(texts)} texts of their words are read alike: {reason}"]


def beyond_table(tokenizer: TokenizerOf, rows: int) -> list[str]:
    """Return a note where files give tokens ids that the embedding table has no row for."""
    beyond = {token: i for tokens in tokenizer.stated.values() for token, i in tokens.items() if i >= rows}
    if not beyond:
        return []
    shown = some([f"{token!r} {i}" for token, i in beyond.items()], 2)
    return [
        f"{tokenizer.source}: its tokenizer has tokens beyond the {rows} rows of its embeddings: {shown}; a text with them "
        "cannot be read"
    ]
