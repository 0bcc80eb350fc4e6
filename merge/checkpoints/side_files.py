"""Side files: the files of a checkpoint's folder that are copied with the weights, and those that are not."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

WEIGHT_ENDINGS = (
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".h5",
    ".msgpack",
    ".onnx",
    ".ot",
)
TRAINING_FILES = ("*.pt", "*.pth", "*.ckpt", "*.pkl", "trainer_state.json", "events.out.tfevents.*", "zero_to_fp32.py")
TRAINING_FOLDERS = ("checkpoint-*", "runs", "global_step*")


def side_files(folder: Path, weights: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (files to copy, files left behind); weights and training state are left behind, hidden files ignored."""
    side: list[str] = []
    left: list[str] = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        name = relative.as_posix()
        hidden = any(part.startswith(".") for part in relative.parts)
        if not path.is_file() or hidden or name in ("config.json", "README.md") or name in weights:
            continue
        if name.endswith(".index.json") and name.removesuffix(".index.json") not in weights:
            continue  # of the shards that are read: a new one is written
        training = _matches(path.name, TRAINING_FILES) or any(
            _matches(p, TRAINING_FOLDERS) for p in relative.parts[:-1]
        )
        unwanted = path.name.endswith(WEIGHT_ENDINGS) or training
        (left if unwanted else side).append(name)
    return tuple(side), tuple(left)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
