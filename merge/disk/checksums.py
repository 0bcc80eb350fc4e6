"""Checksums within files that a later command reads back: a file that was changed, or is of an older version, is recognised.

A record of results has hundreds of numbers that tables and figures index. Whether it is whole is one question, which one hash
answers; a schema of every field would see neither a changed number nor a list that was cut short.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM = "checksum"
# Of what is written; raised when fields that are read back change, so that older files are written anew.
LAYOUT = 1
NOT_AS_WRITTEN = "it was changed since it was written, or an older version wrote it"


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the checksum of all its other entries."""
    whole = {name: value for name, value in record.items() if name != CHECKSUM}
    return {**whole, CHECKSUM: _checksum(whole)}


def without_checksum(value: Any) -> dict[str, Any] | None:
    """Return the object that `with_checksum` was given; None for any value that is not what it returned."""
    if not isinstance(value, dict):
        return None
    whole = {name: child for name, child in value.items() if name != CHECKSUM}
    return whole if value.get(CHECKSUM) == _checksum(whole) else None


def _checksum(whole: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([LAYOUT, whole], sort_keys=True).encode()).hexdigest()


def tensors_checksum(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the SHA-256 of the names, types, shapes and bytes of tensors."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        # As bytes: numpy has no bfloat16 and no float8.
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
