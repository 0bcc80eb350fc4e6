"""Rows as tokens of a checkpoint's tokenizer, cached while neither texts nor tokenizer change."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch

from evals.tasks.task import Rows
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.config_file import position_limit
from merge.checkpoints.inputs import Tokens, load_tokenizer, read_tokens, segment_fault
from merge.disk.cache import cache_key, read_cached_tensors, write_cached_tensors
from merge.disk.hashes import file_hash
from merge.disk.versions import installed_version
from merge.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor

# A tokenizer without a limit of its own states a number beyond all texts.
NO_LIMIT = 10**9
KIND, FORMAT = "tokens", 2
# Names of the files of any tokenizer of transformers; a file too many only makes another cache key.
TOKENIZER_FILES = (
    "*token*",
    "*vocab*",
    "*merges*",
    "*.model",
    "*.spm",
    "*.codes",
    "*.bpe",
    "*.txt",
    "*_maps.json",
    "*.py",
)


def tokenise_rows(
    checkpoint: Checkpoint, rows: Rows, cache: bool = True, max_length: int | None = None, limit: int | None = None
) -> Tokens:
    """Return the rows as tokens of a checkpoint's tokenizer, from the cache where it has them.

    Longer rows are cut to what the model takes: the limit of its positions and of its tokenizer, or `max_length`.

    Args:
        cache: whether tokens are read from the cache and written to it.
        max_length: tokens that are read of a row; None for as many as the model takes.
        limit: that of the pipeline, in place of the tokenizer's own.
    Raises:
        TaskError: there are no rows; the checkpoint has no tokenizer, or one with tokens for which the model has no embedding;
            the model takes fewer tokens than `max_length`.
    """
    if not checkpoint.has_tokenizer:
        raise TaskError(f"{checkpoint.source} has no tokenizer; evaluation needs one. Copy tokenizer.json into it.")
    if not len(rows):
        raise TaskError("there are no rows to predict.")
    key = tokens_key(checkpoint, rows, max_length, limit)
    kept = read_cached_tensors(KIND, key) if cache else None
    if kept is None:
        tokenizer = load_tokenizer(checkpoint.folder)
        tokens = read_tokens(
            tokenizer, rows.texts, _longest(checkpoint, limit or tokenizer.model_max_length, max_length)
        )
        stated = checkpoint.config.get("pad_token_id")
        # The model's code knows the config's pad token alone: heads look for it, and positions are counted by it.
        tokens = replace(tokens, pad=stated if isinstance(stated, int) and stated >= 0 else tokens.pad)
        if cache:
            write_cached_tensors(KIND, key, pack(tokens))
    else:
        tokens = unpack(kept)
    _check_vocabulary(checkpoint, tokens)
    return tokens


def _longest(checkpoint: Checkpoint, of_tokenizer: int, max_length: int | None) -> int:
    """Return how many tokens of a row are read: the smallest of the limits of positions, tokenizer and user."""
    limits = {"positions": position_limit(checkpoint.config) or NO_LIMIT, "its tokenizer's limit": of_tokenizer}
    name, limit = min(limits.items(), key=lambda entry: entry[1])
    if max_length is not None and max_length > limit:
        of = f"{limit:,} {name}" if name == "positions" else f"{limit:,} tokens by {name}"
        raise TaskError(
            f"{checkpoint.source}: --max-length is {max_length:,}, but the model takes {of}. Give {limit:,} or less."
        )
    return min(limit, NO_LIMIT if max_length is None else max_length)


def tokens_key(checkpoint: Checkpoint, rows: Rows, max_length: int | None = None, limit: int | None = None) -> str:
    """Return the hash of everything that determines the tokens: texts, tokenizer files, longest input, library versions."""
    names = [name for name in checkpoint.side_files if any(fnmatchcase(name, pattern) for pattern in TOKENIZER_FILES)]
    return cache_key(
        FORMAT,
        hashlib.sha256(repr(rows.texts).encode()).hexdigest(),
        {name: file_hash(checkpoint.folder / name) for name in sorted(names)},
        [checkpoint.model_type, *(checkpoint.config.get(key) for key in ("tokenizer_class", "pad_token_id"))],
        [position_limit(checkpoint.config), max_length, limit],
        [installed_version(library) for library in ("transformers", "tokenizers")],
    )


def pack(tokens: Tokens) -> dict[str, Tensor]:
    """Return tokens as tensors for a file, in the smallest integer dtype that holds their values."""
    numbers = {"lengths": tokens.lengths, "pad": tokens.pad, "cut": tokens.cut, "pad_left": int(tokens.pad_left)}
    fields = {f"field.{name}": _small(values) for name, values in tokens.fields.items()}
    return fields | {name: torch.tensor(value, dtype=torch.int32) for name, value in numbers.items()}


def unpack(packed: dict[str, Tensor]) -> Tokens:
    """Return the tokens that `pack` packed."""
    fields = {
        name.removeprefix("field."): t if t.is_floating_point() else t.long()
        for name, t in packed.items()
        if name.startswith("field.")
    }
    pad, cut, pad_left = (int(packed[name]) for name in ("pad", "cut", "pad_left"))
    return Tokens(fields, tuple(packed["lengths"].tolist()), pad, cut, bool(pad_left))


def _small(values: Tensor) -> Tensor:
    """Return segments and masks as bytes, ids as four bytes; rows of numbers as they are."""
    if values.is_floating_point():
        return values
    narrow = bool(((values >= 0) & (values < 256)).all())
    return values.to(torch.uint8 if narrow else torch.int32)


def _check_vocabulary(checkpoint: Checkpoint, tokens: Tokens) -> None:
    largest = int(tokens.fields["input_ids"].max())
    size = int(checkpoint.config.get("vocab_size", largest + 1))
    if largest >= size:
        raise TaskError(
            f"{checkpoint.source}: its tokenizer gives token {largest}, but the model has embeddings of {size:,} tokens. "
            "Tokenizer and model do not belong together; copy the tokenizer that the model was trained with."
        )
    segments = tokens.fields.get("token_type_ids")
    fault = None if segments is None else segment_fault(checkpoint.config, int(segments.max()))
    if fault:
        raise TaskError(f"{checkpoint.source}: {fault}")
