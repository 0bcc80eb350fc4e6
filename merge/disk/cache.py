"""Cache: one folder of values that can be computed again, and so may be deleted at any time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.disk.atomic import write_atomic
from merge.disk.checksums import tensors_checksum, with_checksum, without_checksum
from merge.disk.documents import as_json, read_json
from merge.errors import MergeError

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM, VALUE = "sha256", "value"


def cache_folder() -> Path:
    """Return $MERGE_MODELS_CACHE, else $XDG_CACHE_HOME/merge-models, else ~/.cache/merge-models; it need not exist."""
    if stated := os.environ.get("MERGE_MODELS_CACHE"):
        return Path(stated).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification calls a relative path invalid and says to ignore it.
    base = Path(shared) if shared and Path(shared).is_absolute() else Path("~/.cache").expanduser()
    return base / "merge-models"


def cache_key(*parts: Any) -> str:
    """Return the SHA-256 of the parts as JSON, in hexadecimal: equal for equal parts, whatever the order of dict keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_cached(kind: str, key: str) -> Any:
    """Return the value stored under this key, or None where there is none that is as it was written."""
    try:
        stored = without_checksum(read_json(cache_folder() / kind / f"{key}.json", MergeError))
    except (MergeError, RuntimeError):  # RuntimeError: a home folder that does not exist
        return None
    return None if stored is None else stored.get(VALUE)


def write_cached(kind: str, key: str, value: Any) -> None:
    """Store a JSON value under this key, with a checksum; a cache that cannot be written to is no error."""
    whole = as_json({VALUE: value})  # as it is read back
    _write(kind, f"{key}.json", json.dumps(with_checksum(whole)).encode())


def read_cached_tensors(kind: str, key: str) -> dict[str, Tensor] | None:
    """Return the tensors stored under this key; None where there are none, and with a warning where the file was changed."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        path = cache_folder() / kind / f"{key}.safetensors"
        data = path.read_bytes()
    except (OSError, RuntimeError):
        return None
    try:
        tensors = load(data)
    except (SafetensorError, ValueError):
        tensors = {}
    kept = tensors.pop(CHECKSUM, None)
    if kept is None or bytes(kept.tolist()) != tensors_checksum(tensors):
        logging.getLogger(__name__).warning("%s is not what was written there; it is not used, and made again.", path)
        return None
    return tensors


def write_cached_tensors(kind: str, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Store tensors under this key, with a checksum of their names, types, shapes and bytes."""
    import torch
    from safetensors.torch import save

    checksum = torch.tensor(list(tensors_checksum(tensors)), dtype=torch.uint8)
    _write(kind, f"{key}.safetensors", save({**tensors, CHECKSUM: checksum}))


def _write(kind: str, name: str, data: bytes) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        folder = cache_folder() / kind
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, data, sync=False)
