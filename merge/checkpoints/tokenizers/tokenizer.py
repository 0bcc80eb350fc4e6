"""Tokenizer files: a model's tokenizer read as one record, and written so that all of its files agree.

tokenizer.json is read by the tokenizers library, which fills in what older files leave out; a folder that has only the files
of older tokenizers (vocab.txt, or vocab.json and merges.txt) is read as transformers reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from merge.checkpoints.tokenizers.files import (
    check_listed_ids,
    check_numbers,
    lines,
    model_vocab,
    read_object,
    tokenizer_names,
)
from merge.checkpoints.transformers_model import quiet
from merge.disk.documents import parse_json, read_text
from merge.errors import CheckpointError, first_line

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
EXTRA_SPECIAL = ("extra_special_tokens", "additional_special_tokens")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as its files state it.

    Attributes:
        folder: that it was read from.
        stored: the whole of tokenizer.json, every default filled in.
    """

    folder: Path
    stored: Mapping[str, Any] = field(repr=False)

    @property
    def kind(self) -> str:
        """WordPiece, BPE, Unigram or WordLevel."""
        return str(self.stored["model"]["type"])

    @cached_property
    def vocab(self) -> dict[str, int]:
        """Token -> id of the model, without added tokens."""
        return model_vocab(self.stored["model"])

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The merges of a BPE, first rank first; none for another kind."""
        return [(a, b) for a, b in self.stored["model"].get("merges") or ()]

    @cached_property
    def added(self) -> dict[str, dict[str, Any]]:
        """Content -> id and flags of the added tokens, which are cut out of a text before the model reads it."""
        return {token["content"]: dict(token) for token in self.stored["added_tokens"]}

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Token -> id of all of them."""
        return self.vocab | {content: token["id"] for content, token in self.added.items()}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Dotted name -> value of every setting that decides how a text becomes tokens, the vocabulary left out.

        Ids are left out too (special tokens are compared by content), and the decoder, which turns tokens into text.
        """
        parts = {key: self.stored[key] for key in ("normalizer", "pre_tokenizer")}
        model = self.stored["model"]
        parts["model"] = {k: v for k, v in model.items() if k not in ("vocab", "merges", "unk_id")}
        return dict(_flat(parts | {"post_processor": _without_ids(self.stored["post_processor"])}))

    def backend(self) -> Any:
        """Return the tokenizer of the tokenizers library, without truncation and padding."""
        return unbounded(_backend(json.dumps(self.stored)))


def product(model: Mapping[str, Any], pair: Sequence[str]) -> str:
    """Return the token that a BPE merge makes."""
    return pair[0] + pair[1].removeprefix(model.get("continuing_subword_prefix") or "")


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer of a checkpoint's folder; None when it has none that can be read here.

    Raises:
        CheckpointError: the files are no tokenizer, or transformers reads other ids from them.
    """
    if (folder / "tokenizer.json").is_file():
        return parse(_read(folder / "tokenizer.json"), folder)
    if (folder / "vocab.txt").is_file():
        return _converted(folder, "vocab.txt", lines(_read(folder / "vocab.txt")))
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _converted(folder, "vocab.json", read_object(folder / "vocab.json"))
    if any(name.endswith((".model", ".spm")) for name in tokenizer_names(folder)):
        return loaded_tokenizer(load(folder), folder)
    return None


def parse(text: str, folder: Path) -> Tokenizer:
    """Return the tokenizer that the text of a tokenizer.json describes.

    Raises:
        CheckpointError: it is malformed, or the tokenizers library gives a token another id than the file.
    """
    raw = parse_json(text, f"{folder}: tokenizer.json", CheckpointError, nul=True)
    try:
        model, added = raw["model"], raw.get("added_tokens") or ()
        vocab = model_vocab(model)
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges") or ()]
        loose = [pair for pair in pairs if not {*pair, product(model, pair)} <= vocab.keys()]
        stated = vocab | {token["content"]: token["id"] for token in added}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{folder}: tokenizer.json is malformed ({first_line(error)}).") from error
    check_numbers(stated, f"{folder}: tokenizer.json")
    if loose:  # the library panics on some of these
        raise CheckpointError(
            f"{folder}: tokenizer.json merges {loose[0]!r}, but its vocabulary lacks a part or the whole."
        )
    written = _backend(text, folder).to_str()
    result = Tokenizer(folder, parse_json(written, f"{folder}: tokenizer.json", CheckpointError, nul=True))
    wrong = sorted(token for token, i in stated.items() if result.tokens.get(token) != i)
    if wrong or len(stated) != len(result.tokens):
        token = (wrong or sorted(result.tokens.keys() - stated.keys()))[0]
        raise CheckpointError(
            f"{folder}: tokenizer.json gives {token!r} the id {stated.get(token)}, but the tokenizers library reads "
            f"{result.tokens.get(token)}. Two tokens with one id, or ids with gaps? Save the tokenizer again."
        )
    return result


def load(folder: Path) -> Any:
    """Return the tokenizer as transformers loads it, which may differ from tokenizer.json.

    Raises:
        CheckpointError: transformers does not load it, or only as one that does not run on the tokenizers library.
    """
    loaded = load_any(folder)
    if not loaded.is_fast:
        raise CheckpointError(f"{folder}: {type(loaded).__name__} does not run on the tokenizers library.")
    return loaded


def load_any(folder: Path) -> Any:
    """Return the tokenizer as transformers loads it, be it written in Python or run by the tokenizers library.

    Raises:
        CheckpointError: transformers does not load it.
    """
    import transformers

    check_listed_ids(folder)
    try:
        with quiet():
            return transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the tokenizers library raises no narrower one
        raise CheckpointError(f"{folder}: transformers does not load its tokenizer ({first_line(error)}).") from error


def without_dropout(loaded: Any) -> Any:
    """Return a loaded tokenizer that reads a text alike each time: merges are left out at random in training alone."""
    model: Any = getattr(getattr(loaded, "backend_tokenizer", None), "model", None)
    if getattr(model, "dropout", None) is not None:
        model.dropout = None
    return loaded


@contextmanager
def reading_texts(source: str | Path) -> Iterator[None]:
    """Name the model whose tokenizer loads but cannot read a text, as one without its unknown token.

    Raises:
        CheckpointError: it cannot; the tokenizers library raises a plain Exception for that.
    """
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise CheckpointError(
            f"{source}: its tokenizer cannot read texts ({first_line(error)}). Correct its files, or copy them again."
        ) from error


def loaded_tokenizer(loaded: Any, folder: Path) -> Tokenizer:
    """Return the record of a tokenizer that transformers has loaded."""
    return parse(loaded.backend_tokenizer.to_str(), folder)


def unbounded(backend: Any) -> Any:
    """Return the same tokenizer, with truncation and padding switched off."""
    backend.no_truncation()
    backend.no_padding()
    return backend


def _converted(folder: Path, name: str, stated: Mapping[str, int]) -> Tokenizer:
    """Return the tokenizer that transformers builds from older files, checked: a class that ignores them starts empty."""
    result = loaded_tokenizer(load(folder), folder)
    wrong = sorted(token for token, i in stated.items() if result.tokens.get(token) != i)
    if wrong:
        raise CheckpointError(
            f"{folder}: {name} gives {wrong[0]!r} the id {stated[wrong[0]]}, but transformers reads "
            f"{result.tokens.get(wrong[0])}. Is the tokenizer_class the one this file is for? "
            "Save the tokenizer again, so that it has a tokenizer.json."
        )
    return result


def _backend(text: str, folder: Path | None = None) -> Any:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the tokenizers library raises no narrower one
        raise CheckpointError(f"{folder}: tokenizer.json is malformed ({first_line(error)}).") from error


def _read(path: Path) -> str:
    return read_text(path, CheckpointError, f"{path.parent}: {path.name}").replace("\r\n", "\n")


def _without_ids(part: Any) -> Any:
    """Return a post-processor without the ids of its special tokens."""
    if isinstance(part, Mapping):
        named = {k: (v[0] if k in ("cls", "sep") and isinstance(v, list) else v) for k, v in part.items() if k != "ids"}
        return {k: _without_ids(v) for k, v in named.items()}
    return [_without_ids(p) for p in part] if isinstance(part, list) else part


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping | list) and value:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, None if value == "" else value
