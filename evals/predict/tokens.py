"""Rows as tokens of a checkpoint's tokenizer, cached while neither texts nor tokenizer change."""

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
# Names of the files of any tokenizer of transformers; a file too many only makes another cache key.
TOKENIZER_FILES = ("*token*", "*vocab*", "*merges*", "*.model", "*.codes", "*.txt", "*.py")


def tokenise_rows(checkpoint: Checkpoint, rows: Rows, cache: bool = True) -> Tokens:
    """Return the rows as tokens of a checkpoint's tokenizer, from the cache where it has them.

    Args:
        cache: whether tokens are read from the cache and written to it.
    Raises:
        TaskError: there are no rows; the checkpoint has no tokenizer, or one with tokens for which the model has no embedding.
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
    """Return the hash of everything that determines the tokens: texts, tokenizer files, longest input, library versions."""
    names = [name for name in checkpoint.side_files if any(fnmatchcase(name, pattern) for pattern in TOKENIZER_FILES)]
    return cache_key(
        FORMAT,
        hashlib.sha256(repr(rows.texts).encode()).hexdigest(),
        {name: file_hash(checkpoint.folder / name) for name in sorted(names)},
        [checkpoint.model_type, checkpoint.config.get("tokenizer_class"), _positions(checkpoint), MAX_LENGTH],
        [importlib.metadata.version(library) for library in ("transformers", "tokenizers")],
    )


def pack(tokens: Tokens) -> dict[str, Tensor]:
    """Return tokens as tensors for a file, in the smallest integer dtype that holds their values."""
    numbers = {"lengths": tokens.lengths, "pad": tokens.pad, "cut": tokens.cut}
    fields = {f"field.{name}": _small(values) for name, values in tokens.fields.items()}
    return fields | {name: torch.tensor(value, dtype=torch.int32) for name, value in numbers.items()}


def unpack(packed: dict[str, Tensor]) -> Tokens:
    """Return the tokens that `pack` packed."""
    fields = {name.removeprefix("field."): t.long() for name, t in packed.items() if name.startswith("field.")}
    return Tokens(fields, tuple(packed["lengths"].tolist()), int(packed["pad"]), int(packed["cut"]))


def _small(values: Tensor) -> Tensor:
    """Return segments and masks as bytes, ids as four bytes."""
    narrow = bool(((values >= 0) & (values < 256)).all())
    return values.to(torch.uint8 if narrow else torch.int32)


def _positions(checkpoint: Checkpoint) -> int:
    """Return the longest input that the model has positions for; MAX_LENGTH where its config sets no limit."""
    stated = any(checkpoint.config.get(key) for key in ("max_position_embeddings", "n_positions"))
    return positions(checkpoint.config) if stated else MAX_LENGTH


def _check_vocabulary(checkpoint: Checkpoint, tokens: Tokens) -> None:
    largest = int(tokens.fields["input_ids"].max())
    size = int(checkpoint.config.get("vocab_size", largest + 1))
    if largest >= size:
        raise TaskError(
            f"{checkpoint.source}: its tokenizer gives token {largest}, but the model has embeddings of {size:,} tokens. "
            "Tokenizer and model do not belong together; copy the tokenizer that the model was trained with."
        )
