"""Trained points as checkpoints: written whole or not at all beside results.json, and read again by a later run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from merge.checkpoints.checkpoint import Checkpoint

RECORD = "surface.json"  # how the checkpoint was made; what a later run needs to know of it


def write_point(folder: Path, like: Checkpoint, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a point of weight space as a checkpoint of transformers, in float32, with the tokenizer of a model.

    Args:
        like: whose config and side files it has.
        weights: by the names transformers writes.
        facts: how it was made, for RECORD; a key among them. The hashes of the weight files are added, and a checksum of all.
    Raises:
        OutputError: the folder cannot be written.
    """
    import torch

    from merge.checkpoints.transformers_model import build, quiet
    from merge.disk.checksums import with_checksum
    from merge.disk.staging import copy_side_files, staged, write_json

    model = build(like.config, weights, torch.float32)
    with staged(folder) as temporary:
        with quiet():
            model.save_pretrained(temporary)
        hashes = _weight_hashes(temporary)
        written = {path.name for path in temporary.iterdir()}
        copy_side_files(like.folder, tuple(name for name in like.side_files if name not in written), temporary)
        write_json(temporary / RECORD, with_checksum({**facts, "weights": hashes}))


def read_point(folder: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the weights and the facts of a point that was written under a key; None where there is none.

    Raises:
        CheckpointError: the folder holds something else, or is not as it was written.
    """
    if not folder.exists():
        return None
    from merge.checkpoints.open import open_encoder
    from merge.disk.checksums import NOT_AS_WRITTEN, without_checksum
    from merge.disk.documents import read_json

    path = folder / RECORD
    facts = read_json(path, CheckpointError) if path.is_file() else None
    if not isinstance(facts, dict) or facts.get("key") != key:
        raise CheckpointError(
            f"{folder} exists, and is not the point that this command makes. Move it, or choose another -o."
        )
    whole = without_checksum(facts)
    if whole is None or whole["weights"] != _weight_hashes(folder):
        raise CheckpointError(f"{folder} is not used: {NOT_AS_WRITTEN}. Take --force to train it again, or another -o.")
    opened = open_encoder(str(folder))
    weights = {opened.written_name(name): tensor.clone() for name, tensor in opened.state_dict().items()}
    return weights, whole


def _weight_hashes(folder: Path) -> dict[str, str]:
    from merge.disk.hashes import file_hash

    return {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))}
