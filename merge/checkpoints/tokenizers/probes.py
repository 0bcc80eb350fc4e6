"""Probe texts: texts that two tokenizers of one vocabulary read differently, if any are.

Some are made of the vocabulary's own words. Others are made for what differs in the tokenizers' tables: merges of another
rank, pieces of another score, added tokens with other flags.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merge.checkpoints.tokenizers.tokenizer import FLAGS, Tokenizer
from merge.errors import some

SAMPLED_WORDS, LONG_WORD, MAX_TEXTS = 48, 120, 64
SCORE_TOLERANCE = 1e-5  # relative: sentencepiece keeps 32 bits, tokenizer.json prints decimals
FIXED_TEXTS = (
    "Hello World", "na\u00efve caf\u00e9 \u00c0\u00c9", "don't we'll", "a  b\tc\nd ", " a", "\u6771\u4eac \u6771\u4eac\u90fd",
    "1234567 3.14", "e\u0301 \ufb01 \u00bd \u2460", "\u200bzero\u00a0width", "(a) [b] {c} <d>", "\U0001f600!", "\u00df \u0130",
    "[MASK] <mask> a[MASK]b", "",
)  # fmt: skip
Merge = tuple[str, ...]


@dataclass(frozen=True)
class Tables:
    """What a tokenizer looks up beside its vocabulary.

    Attributes:
        merges: of a BPE, first rank first.
        scores: piece -> score of a Unigram.
        added: token that is cut out of a text -> its flags.
    """

    merges: Sequence[Merge] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def tables_of(record: Tokenizer) -> Tables:
    """Return the tables of a tokenizer that the tokenizers library runs."""
    pieces = record.stored["model"]["vocab"] if record.kind == "Unigram" else ()
    return Tables(record.merges, {str(piece): float(score) for piece, score in pieces}, record.added)


def probe_texts(tokens: Mapping[str, int]) -> Iterator[str]:
    """Yield texts that show what a tokenizer does: its own words in other cases, spellings and neighbourhoods."""
    words = sorted({plain for token in tokens if (plain := _plain(token)).isalpha()})
    step = max(1, len(words) // SAMPLED_WORDS)
    chosen = words[::step][:SAMPLED_WORDS] or ["a"]
    yield f"{chosen[0]} {chosen[-1]}"
    yield f"{chosen[-1]}, {chosen[0]}."
    for word, following in zip(chosen, [*chosen[1:], chosen[0]], strict=True):
        accented = unicodedata.normalize("NFC", f"{word[0]}\u0301{word[1:]}")
        yield f"{word} {word.upper()} {word.capitalize()}  {word}"
        yield f"{accented} {word}\u0301 {word}{following} {word}-{following}"
        yield word * (LONG_WORD // len(word) + 1)
    yield from FIXED_TEXTS


def table_differences(a: Tables, b: Tables) -> tuple[list[str], list[str]]:
    """Return (a phrase on each table that differs, texts that show what the difference does)."""
    parts = (
        _merge_differences(a.merges, b.merges),
        _score_differences(a.scores, b.scores),
        _flag_differences(a.added, b.added),
    )
    return [phrase for phrase, _ in parts if phrase], [text for _, texts in parts for text in texts]


def _merge_differences(a: Sequence[Merge], b: Sequence[Merge]) -> tuple[str, list[str]]:
    """Compare two tables of merges, first rank first.

    A text x y z shows which of the merges (x, y) and (y, z) comes first.
    """
    if list(a) == list(b):
        return "", []
    left, right = ({pair: rank for rank, pair in enumerate(table)} for table in (a, b))
    alone = left.keys() ^ right.keys()
    common = [pair for pair in left if pair in right]
    order = [pair for pair in right if pair in left]
    moved = [pair for pair, other in zip(common, order, strict=True) if pair != other]
    following: dict[str, list[Merge]] = {}
    for pair in common:
        following.setdefault(pair[0], []).append(pair)
    texts = [_plain(x + y) for x, y in sorted(alone)[:MAX_TEXTS]]
    for pair in moved:
        swapped = (
            _plain(pair[0] + pair[1] + after[1])
            for after in following.get(pair[1], ())
            if (left[pair] < left[after]) is not (right[pair] < right[after])
        )
        texts += [text for _, text in zip(range(2), swapped, strict=False)]
        if len(texts) >= 2 * MAX_TEXTS:
            break
    counts = [f"{len(alone)} merges are of one alone"] * bool(alone) + [f"{len(moved)} have other ranks"] * bool(moved)
    return f"of their merges {' and '.join(counts)}", texts


def _score_differences(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[str, list[str]]:
    """Compare the scores of pieces."""
    other = [
        piece
        for piece in a.keys() & b.keys()
        if not math.isclose(a[piece], b[piece], rel_tol=SCORE_TOLERANCE, abs_tol=SCORE_TOLERANCE)
    ]
    if not other:
        return "", []
    other.sort(key=lambda piece: (-abs(a[piece] - b[piece]), piece))
    texts = [_plain(piece) for piece in other[:MAX_TEXTS]]
    joined = [first + second for first, second in itertools.pairwise(texts)]
    return f"{len(other)} pieces have other scores", [*texts, *joined]


def _flag_differences(a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[str]]:
    """Compare how added tokens are cut out of a text."""
    flags = [flag for flag in FLAGS if flag != "special"]

    def of(token: Mapping[str, Any] | None) -> list[Any]:
        return [token.get(flag) for flag in flags] if token else []

    other = [t for t in {**a, **b} if of(a.get(t)) != of(b.get(t))]
    if not other:
        return "", []
    shown = other[:MAX_TEXTS]
    texts = [form for t in shown for form in (f"a{t}b", f"a {t} b", f"a  {t}  b", f"{t.upper()} {t.lower()}")]
    return f"added tokens have other flags: {some([repr(t) for t in other], 2)}", texts


def _plain(token: str) -> str:
    """Return a token without the marks of its kind: ## of WordPiece, the space of BPE and Unigram, the end of a word."""
    return token.removeprefix("##").lstrip("\u0120\u2581").removesuffix("</w>")
