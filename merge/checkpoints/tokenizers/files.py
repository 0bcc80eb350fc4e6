"""The files of a tokenizer: which a folder has, and the ids that each of them states."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import Any

from merge.disk.documents import read_object as _read_object
from merge.disk.documents import read_text
from merge.errors import CheckpointError, MergeError, MismatchError, brief, first_line

FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
# Files that hold a vocabulary, of any tokenizer class of transformers: sentencepiece models, lists of words, of bytes.
VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.spm", "vocab-src.json", "*.tokenizer", "dict.txt",
    "*.tiktoken", "byte_maps.json",
)  # fmt: skip
OTHERS = (
    "vocab-tgt.json", "bpe.codes", "*.bpe", "entity_vocab.json", "emoji.json", "word_shape.json",
    "word_pronunciation.json",
)  # fmt: skip
# Classes that read characters or bytes, and model types that have such a class: they need no file with a vocabulary.
WITHOUT_VOCABULARY = frozenset({"ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"})
CHARACTER_MODELS = frozenset({"canine", "perceiver"})
MAX_UNUSED_IDS = 1 << 20  # beyond the tokens of a file: those of added_tokens.json follow a whole vocabulary


def tokenizer_names(folder: Path) -> list[str]:
    """Return the names of a folder's tokenizer files, which a merge writes instead of copying them."""
    others = sorted(
        path.name
        for path in folder.glob("*")
        if path.name not in FILES and _matches(path.name, (*VOCABULARIES, *OTHERS)) and path.is_file()
    )
    return [*(name for name in FILES if (folder / name).is_file()), *others]


def has_tokenizer(folder: Path, names: Iterable[str], config: Mapping[str, Any]) -> bool:
    """Return whether a folder with these files has a tokenizer that transformers loads.

    A tokenizer_config.json alone is one only for a class that needs no vocabulary: all others would start empty. A
    multi-layer perceptron needs none: it reads rows of numbers.
    """
    names = list(names)
    if config.get("model_type") == "mlp":
        return True
    if any(_matches(name, VOCABULARIES) for name in names):
        return True
    if not {"tokenizer_config.json", "special_tokens_map.json"} & set(names):
        return False
    return tokenizer_class(folder, config) in WITHOUT_VOCABULARY or (
        config.get("model_type") in CHARACTER_MODELS and not tokenizer_class(folder, config)
    )


def tokenizer_class(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the class that tokenizer_config.json names, or config.json; "" where neither does."""
    path = folder / "tokenizer_config.json"
    settings = read_object(path) if path.is_file() else {}
    return str(settings.get("tokenizer_class") or config.get("tokenizer_class") or "").removesuffix("Fast")


def stated_ids(folder: Path) -> dict[str, dict[str, int]]:
    """Return file -> token -> id, for each of a folder's files that lists tokens with their ids.

    Raises:
        MismatchError: a file is malformed.
    """
    out: dict[str, dict[str, int]] = {}
    if (folder / "tokenizer.json").is_file():
        words, added = _of_tokenizer_json(folder)
        out["tokenizer.json"] = words | added
        out["the vocabulary in tokenizer.json"] = {t: words[t] for t, i in added.items() if words.get(t, i) != i}
    if (folder / "vocab.txt").is_file():
        text = read_lines(folder / "vocab.txt", MismatchError)
        out["vocab.txt"] = lines(text)
        out["an earlier line of vocab.txt"] = _first_lines(text)
    for name in ("vocab.json", "added_tokens.json"):
        if (folder / name).is_file():
            out[name] = {t: i for t, i in read_object(folder / name, MismatchError).items() if isinstance(i, int)}
    if (folder / "tokenizer_config.json").is_file():
        listed = read_object(folder / "tokenizer_config.json", MismatchError).get("added_tokens_decoder")
        out["tokenizer_config.json"] = {
            entry["content"]: int(i)
            for i, entry in (listed.items() if isinstance(listed, Mapping) else ())
            if isinstance(entry, Mapping) and isinstance(entry.get("content"), str) and i.isdecimal()
        }
    return out


def check_listed_ids(folder: Path) -> None:
    """Stop where a file gives a token an id far beyond their number, as `check_numbers` does.

    Raises:
        CheckpointError: it does, or a file is malformed.
    """
    try:
        stated = stated_ids(folder)
    except MismatchError as error:
        raise CheckpointError(str(error)) from error
    for file, tokens in stated.items():
        check_numbers(tokens, f"{folder}: {file}")


def check_numbers(tokens: Mapping[str, Any], name: str) -> None:
    """Stop where a token has an id far beyond their number: the tokenizers library makes room for every id up to it.

    Raises:
        CheckpointError: one has; `name` is how it names the file.
    """
    most = MAX_UNUSED_IDS + 16 * len(tokens)
    for token, number in tokens.items():
        if isinstance(number, int) and number > most:
            raise CheckpointError(
                f"{name} gives {brief(token)!r} the id {brief(str(number))}, though it lists {len(tokens):,} tokens; expected "
                f"at most {most:,}. Correct the file, or copy it again."
            )


def listed_words(folder: Path) -> int:
    """Return how many words vocab.txt or vocab.json lists, where there is no tokenizer.json; 0 where neither can be read."""
    if (folder / "tokenizer.json").is_file():
        return 0
    with contextlib.suppress(CheckpointError):
        if (folder / "vocab.txt").is_file():
            return len(lines(read_lines(folder / "vocab.txt")))
        if (folder / "vocab.json").is_file():
            return len(read_object(folder / "vocab.json"))
    return 0


def ids_of(stated: Mapping[str, Mapping[str, int]]) -> dict[str, dict[int, str]]:
    """Return token -> id -> the first file that states it, for tokens with more than one id."""
    several: dict[str, dict[int, str]] = {}
    for (file, tokens), (other, others) in combinations(((f, t) for f, t in stated.items() if t), 2):
        few, many = (tokens, others) if len(tokens) < len(others) else (others, tokens)
        for token in (t for t, i in few.items() if many.get(t, i) != i):
            ids = several.setdefault(token, {tokens[token]: file})
            ids.setdefault(others[token], other)
    return several


def lines(text: str) -> dict[str, int]:
    """Return token -> id of a vocab.txt; not by splitlines, as a vocabulary may hold U+2028 and similar as words."""
    tokens = text.split("\n")
    return {token: i for i, token in enumerate(tokens) if token or i < len(tokens) - 1}


def _first_lines(text: str) -> dict[str, int]:
    """Return token -> its first id in a vocab.txt, for tokens that it lists several times."""
    first: dict[str, int] = {}
    last = lines(text)
    for i, token in enumerate(text.split("\n")):
        if token.strip() and last[token] != i:
            first.setdefault(token, i)
    return first


def model_vocab(model: Mapping[str, Any]) -> dict[str, int]:
    """Return token -> id of the model in a tokenizer.json; a Unigram lists (piece, score) in the order of the ids."""
    vocab = model["vocab"]
    return {entry[0]: i for i, entry in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)


def read_object(path: Path, error: type[MergeError] = CheckpointError) -> dict[str, Any]:
    """Return the JSON object of a tokenizer file."""
    return _read_object(path, error, name=f"{path.parent}: {path.name}", nul=True)


def read_lines(path: Path, error: type[MergeError] = CheckpointError) -> str:
    """Return the text of a tokenizer file, whose lines end with a line feed on every system."""
    return read_text(path, error, f"{path.parent}: {path.name}").replace("\r\n", "\n")


def _of_tokenizer_json(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Return token -> id of the model in a tokenizer.json, and of its added tokens."""
    stored = read_object(folder / "tokenizer.json", MismatchError)
    try:
        tokens = model_vocab({"vocab": stored["model"].get("vocab") or {}})
        added = {token["content"]: token["id"] for token in stored.get("added_tokens") or ()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise MismatchError(f"{folder}: tokenizer.json is malformed ({first_line(error)}).") from error
    for token, number in (*tokens.items(), *added.items()):
        if type(number) is not int or not isinstance(token, str):
            raise MismatchError(
                f"{folder}: tokenizer.json gives {brief(str(token))!r} the id {brief(repr(number))}; expected a token and a "
                "whole number. Correct the file, or copy it again."
            )
    return tokens, added


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in patterns)
