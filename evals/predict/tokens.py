"""Rows as tokens: read by a checkpoint's own tokenizer once, and remembered while neither texts nor tokenizer change."""

from __future__ import annotations

import hashlib
import importlib.metadata
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch

from evals.tasks.task import Rows
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.inputs import Tokens, load_tokenizer, positions, read_tokens
from merge.disk.cache import cache_key, read_cached_tensors, write_cached_tensors
from merge.disk.hashes import file_hash
from merge.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor

MAX_LENGTH = 512
KIND, FORMAT = "tokens", 1
# Every name under which a tokenizer of transformers keeps something; a file too many only makes a key of its own.
TOKENIZER_FILES = ("*token*", "*vocab*", "*merges*", "*.model", "*.codes", "*.txt", "*.py")


def tokenise_rows(checkpoint: Checkpoint, rows: Rows, cache: bool = True) -> Tokens:
    """Return the rows as tokens of a checkpoint's own tokenizer, from the cache where they are known there.

    Args:
        cache: whether the cache is read and written.
    Raises:
        TaskError: there are no rows; the checkpoint has no tokenizer, or one with tokens that the model has no embedding of.
    """
    if not checkpoint.has_tokenizer:
        raise TaskError(f"{checkpoint.source} has no tokenizer; evaluation needs one. Copy tokenizer.json into it.")
    if not len(rows):
        raise TaskError("there are no rows to predict.")
    key = tokens_key(checkpoint, rows)
    kept = read_cached_tensors(KIND, key) if cache else None
    if kept is None:
        tokenizer = load_tokenizer(checkpoint.folder)
        longest = min(MAX_LENGTH, _positions(checkpoint), tokenizer.model_max_length)
        tokens = read_tokens(tokenizer, rows.texts, longest)
        if cache:
            write_cached_tensors(KIND, key, pack(tokens))
    else:
        tokens = unpack(kept)
    _check_vocabulary(checkpoint, tokens)
    return tokens


def tokens_key(checkpoint: Checkpoint, rows: Rows) -> str:
    """Return the hash of all that decides the tokens: texts, tokenizer files, longest input, and who reads them."""
    names = [name for name in checkpoint.side_files if any(fnmatchcase(name, known) for known in TOKENIZER_FILES)]
    return cache_key(
        FORMAT,
        hashlib.sha256(repr(rows.texts).encode()).hexdigest(),
        {name: file_hash(checkpoint.folder / name) for name in sorted(names)},
        [checkpoint.model_type, checkpoint.config.get("tokenizer_class"), _positions(checkpoint), MAX_LENGTH],
        [importlib.metadata.version(library) for library in ("transformers", "tokenizers")],
    )


def pack(tokens: Tokens) -> dict[str, Tensor]:
    """Return tokens as tensors for a file, as small as their values are."""
    stated = {"lengths": tokens.lengths, "pad": tokens.pad, "cut": tokens.cut}
    fields = {f"field.{name}": _small(values) for name, values in tokens.fields.items()}
    return fields | {name: torch.tensor(value, dtype=torch.int32) for name, value in stated.items()}


def unpack(packed: dict[str, Tensor]) -> Tokens:
    """Return what `pack` was given."""
    fields = {name.removeprefix("field."): t.long() for name, t in packed.items() if name.startswith("field.")}
    return Tokens(fields, tuple(packed["lengths"].tolist()), int(packed["pad"]), int(packed["cut"]))


def _small(values: Tensor) -> Tensor:
    """Return segments and masks in a byte each, ids in four."""
    narrow = bool(((values >= 0) & (values < 256)).all())
    return values.to(torch.uint8 if narrow else torch.int32)


def _positions(checkpoint: Checkpoint) -> int:
    """Return how many tokens the model can tell the places of; as many as are ever read where it sets no limit."""
    stated = any(checkpoint.config.get(key) for key in ("max_position_embeddings", "n_positions"))
    return positions(checkpoint.config) if stated else MAX_LENGTH


def _check_vocabulary(checkpoint: Checkpoint, tokens: Tokens) -> None:
    largest = int(tokens.fields["input_ids"].max())
    known = int(checkpoint.config.get("vocab_size", largest + 1))
    if largest >= known:
        raise TaskError(
            f"{checkpoint.source}: its tokenizer gives token {largest}, but the model knows {known:,} tokens. "
            "These are not one model's; copy the tokenizer the model was trained with."
        )
