"""The tokenizer files of a result, in every format that the source has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from merge.checkpoints.tokenizers.files import FILES, read_object
from merge.checkpoints.tokenizers.tokenizer import EXTRA_SPECIAL, FLAGS, Tokenizer
from merge.errors import OutputError


def file_texts(tokenizer: Tokenizer, source: Path, extra_special: Sequence[str] = ()) -> dict[str, str]:
    """Return file name -> text of tokenizer.json and of the other tokenizer files that `source` has, all in agreement.

    Args:
        source: the model whose settings and special tokens the tokenizer keeps.
        extra_special: special tokens that the source does not list and the result has.
    Raises:
        OutputError: a token cannot be written in one of the older formats.
    """
    texts = {"tokenizer.json": _dump(tokenizer.stored)}
    has = {name for name in FILES if (source / name).is_file()}
    if "vocab.txt" in has:
        texts["vocab.txt"] = "".join(f"{token}\n" for token in sorted(tokenizer.vocab, key=tokenizer.vocab.__getitem__))
        _writable("vocab.txt", tokenizer.vocab, "\r\n")
    if "vocab.json" in has:
        texts["vocab.json"] = json.dumps(tokenizer.vocab, ensure_ascii=False)
    if "merges.txt" in has:
        texts["merges.txt"] = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in tokenizer.merges)
        _writable("merges.txt", (part for pair in tokenizer.merges for part in pair), " \r\n")
    if "added_tokens.json" in has:
        only = {c: token["id"] for c, token in tokenizer.added.items() if c not in tokenizer.vocab}
        texts["added_tokens.json"] = _dump(only)
    if "special_tokens_map.json" in has:
        roles = read_object(source / "special_tokens_map.json")
        texts["special_tokens_map.json"] = _dump(_with_extra(roles, extra_special, create=False))
    if "tokenizer_config.json" in has or extra_special:
        config = read_object(source / "tokenizer_config.json") if "tokenizer_config.json" in has else {}
        if "added_tokens_decoder" in config:
            flags = {str(t["id"]): {"content": c} | {f: t[f] for f in FLAGS} for c, t in tokenizer.added.items()}
            config |= {"added_tokens_decoder": flags}
        texts["tokenizer_config.json"] = _dump(_with_extra(config, extra_special, create=True))
    return texts


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _writable(name: str, tokens: Iterable[str], forbidden: str) -> None:
    """Stop where an older format, which has one entry a line and no quotes, would read a token as another."""
    for token in tokens:
        if token != token.strip() or any(mark in token for mark in forbidden):
            raise OutputError(
                f"{name} cannot hold the token {token!r}: there is a space or line break in it. Take {name} out of the "
                "model's folder; tokenizer.json is enough."
            )


def _with_extra(entries: Mapping[str, Any], extra: Sequence[str], create: bool) -> dict[str, Any]:
    """Return the entries with special tokens that have no role added to the list in which the source has them."""
    lists = [key for key in EXTRA_SPECIAL if isinstance(entries.get(key), list)]
    if not extra or not (lists or create):
        return dict(entries)
    key = lists[0] if lists else next(key for key in EXTRA_SPECIAL if not entries.get(key))
    listed = entries.get(key) or []
    known = {entry["content"] if isinstance(entry, Mapping) else entry for entry in listed}
    return {**entries, key: [*listed, *(token for token in extra if token not in known)]}
