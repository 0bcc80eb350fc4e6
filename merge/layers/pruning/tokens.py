"""Trimmed tokenizers: fewer tokens, and the same tokens as before in the texts that those were chosen for.

What stays besides the tokens of the texts: special and added tokens; every token of a single character or byte, so that
other texts can still be read, in smaller pieces; tokens with a character that no such token has; and what the model of the
tokenizer needs to make the same tokens of the same texts:

    WordPiece   nothing more: the longest match among fewer tokens is the same where that match stays
    BPE         the tokens that merges pass through; merges of two kept tokens into a kept one, in their order
    Unigram     the piece with the lowest score, which sets the score of unknown characters
    WordLevel   nothing more, but every other word becomes unknown
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from merge.checkpoints.tokenizers.tokenizer import Tokenizer, parse, product
from merge.checkpoints.tokenizers.union import with_ids
from merge.errors import CheckpointError

KINDS = ("WordPiece", "BPE", "Unigram", "WordLevel")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Kept:
    """The tokens that stay.

    Attributes:
        tokens: all of them.
        reasons: why -> how many stay for that reason alone, in the order in which they were added.
    """

    tokens: frozenset[str]
    reasons: Mapping[str, int]


def kept_tokens(tokenizer: Tokenizer, used: Collection[int], below: int = 0, allow_unknown: bool = False) -> Kept:
    """Return the tokens that stay for texts that use some of them.

    Args:
        used: ids of the tokens of the texts, and of those that configs name.
        below: every token with a smaller id stays too.
        allow_unknown: whether tokens go whose characters have no token of their own.
    Raises:
        CheckpointError: the tokenizer is of another kind.
    """
    if tokenizer.kind not in KINDS:
        raise CheckpointError(f"{tokenizer.folder}: a tokenizer of the kind {tokenizer.kind} cannot be trimmed.")
    wanted = set(used)
    kept: set[str] = set()
    reasons: dict[str, int] = {}

    def keep(why: str, tokens: Iterable[str]) -> None:
        before = len(kept)
        kept.update(token for token in tokens if token in tokenizer.tokens)
        reasons[why] = len(kept) - before

    keep("in the text", (t for t, i in tokenizer.tokens.items() if i in wanted))
    model = tokenizer.stored["model"]
    keep("special or added", [*tokenizer.added, str(model.get("unk_token"))])
    if tokenizer.kind == "Unigram":
        pieces = model["vocab"]
        unknown = [pieces[model["unk_id"]][0]] if model.get("unk_id") is not None else []
        keep("settings of the tokenizer", [*unknown, min(pieces, key=lambda piece: float(piece[1]))[0]])
    keep("below the padding token", (t for t, i in tokenizer.tokens.items() if i < below))
    if tokenizer.kind != "WordLevel":
        keep("one character or byte", (token for token in tokenizer.vocab if is_single(model, token)))
        keep("the only ones with a character", () if allow_unknown else unspellable(tokenizer))
    if tokenizer.kind == "BPE":
        keep("steps of merges", _steps(tokenizer, kept))
    return Kept(frozenset(kept), {why: count for why, count in reasons.items() if count})


def trimmed(tokenizer: Tokenizer, kept: Collection[str]) -> tuple[Tokenizer, list[int]]:
    """Return the tokenizer of the kept tokens, in the order of their ids, and the old id of each new one.

    Raises:
        CheckpointError: the tokenizers library does not read what was made.
    """
    rows = sorted({tokenizer.tokens[token] for token in kept})
    new = {old: number for number, old in enumerate(rows)}
    tokens = {token: new[tokenizer.tokens[token]] for token in kept}
    model = dict(tokenizer.stored["model"])
    if tokenizer.kind == "Unigram":
        model["vocab"] = [piece for piece in model["vocab"] if piece[0] in tokens]
        if model.get("unk_id") is not None:
            model["unk_id"] = tokens[tokenizer.stored["model"]["vocab"][model["unk_id"]][0]]
    else:
        model["vocab"] = {token: tokens[token] for token in tokenizer.vocab if token in tokens}
    if tokenizer.kind == "BPE":
        model["merges"] = [list(pair) for pair in tokenizer.merges if {*pair, product(model, pair)} <= tokens.keys()]
    stored: dict[str, Any] = {**tokenizer.stored, "model": model}
    stored["added_tokens"] = [{**token, "id": tokens[content]} for content, token in tokenizer.added.items()]
    stored["post_processor"] = with_ids(tokenizer.stored["post_processor"], tokens)
    if stored["padding"] and stored["padding"]["pad_token"] in tokens:
        stored["padding"] = {**stored["padding"], "pad_id": tokens[stored["padding"]["pad_token"]]}
    result = parse(json.dumps(stored), tokenizer.folder)
    if result.tokens != tokens:
        raise CheckpointError(f"{tokenizer.folder}: its tokenizer cannot be trimmed: two tokens share one id.")
    return result, rows


def is_single(model: Mapping[str, Any], token: str) -> bool:
    """Return whether a token is a single character or byte, at any place of a word."""
    return len(_core(model, token)[1]) == 1 or _BYTE.fullmatch(token) is not None


def _core(model: Mapping[str, Any], token: str) -> tuple[str, str, str]:
    """Return a token as (prefix of the inside of a word, text, suffix of the end of a word)."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    prefix = prefix if prefix and token.startswith(prefix) and token != prefix else ""
    suffix = suffix if suffix and token.endswith(suffix) and token != suffix else ""
    return prefix, token[len(prefix) : len(token) - len(suffix)], suffix


def symbols(model: Mapping[str, Any], token: str) -> list[str]:
    """Return the tokens of single characters that spell a token."""
    inside = model.get("continuing_subword_prefix") or ""
    prefix, text, suffix = _core(model, token)
    last = len(text) - 1
    return [(prefix if k == 0 else inside) + c + (suffix if k == last else "") for k, c in enumerate(text)]


def unspellable(tokenizer: Tokenizer) -> list[str]:
    """Return the tokens with a character that no token of one character has, bytes left to the byte tokens."""
    model, vocab = tokenizer.stored["model"], tokenizer.vocab
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in vocab for byte in range(256)):
        return []
    return [token for token in vocab if not all(symbol in vocab for symbol in symbols(model, token))]


def _steps(tokenizer: Tokenizer, kept: Collection[str]) -> set[str]:
    """Return the tokens that the merges of a BPE pass through on the way to the kept ones.

    The merges inside a token are the same in every word that it comes out of: none of a lower rank crosses its ends, or it
    would not have come out.
    """
    model = tokenizer.stored["model"]
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(tokenizer.merges)))}
    passed: set[str] = set()
    for token in kept:
        parts = symbols(model, token)
        while len(parts) > 1:
            rank, at = min((ranks.get(pair, len(ranks)), k) for k, pair in enumerate(pairwise(parts)))
            if rank == len(ranks):
                break
            made = product(model, parts[at : at + 2])
            passed.add(made)
            parts[at : at + 2] = [made]
    return passed
