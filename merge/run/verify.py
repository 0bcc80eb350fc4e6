"""Verify a merged folder: compare its files, and the inputs it was made of, with the hashes in its manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.disk.hashes import file_hash
from merge.errors import CheckpointError

MANIFESTS = ("merge.json", "edit.json")  # of merge-models and of edit-layers; a folder has one


@dataclass(frozen=True)
class Verification:
    """The result of a verification, by file and by input.

    Attributes:
        files: file -> "same", "changed", "missing" (in the manifest only) or "not in the manifest".
        inputs: model or applied transform, by the name it was given -> "same", "changed" or "not here".
    """

    files: Mapping[str, str]
    inputs: Mapping[str, str]

    @property
    def holds(self) -> bool:
        """Whether every file is as it was written, and no input that exists here has changed."""
        return set(self.files.values()) <= {"same"} and "changed" not in self.inputs.values()


def verify(folder: Path) -> Verification:
    """Recompute the SHA-256 of every file of a merged folder, and of the inputs it was made of that exist here.

    An input is read from the path that it was given by; a Hub commit cannot change and is not fetched.

    Raises:
        CheckpointError: the folder has no manifest of merge-models or edit-layers.
    """
    path = next((folder / name for name in MANIFESTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} cannot be verified: it has no {MANIFESTS[0]}, which merge-models writes.")
    stated = _read_manifest(path)
    existing = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {path.name}
    files = {}
    for name in sorted(existing | set(stated["files"])):
        if name not in stated["files"]:
            files[name] = "not in the manifest"
        elif name not in existing:
            files[name] = "missing"
        else:
            files[name] = "same" if file_hash(folder / name) == stated["files"][name] else "changed"
    inputs = [*stated["models"], *([stated["base"]] if stated.get("base") else [])]
    states = {model["source"]: _input_state(model) for model in inputs}
    states |= {path: _file_state(Path(path).expanduser(), digest) for path, digest in stated.get("applied", {}).items()}
    return Verification(files, states)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(stated["files"], dict) and all(
            {"source", "commit", "files"} <= set(m) for m in stated["models"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is malformed: {error!r}. Was it edited?") from error
    if not whole:
        raise CheckpointError(f"{path} is malformed: it does not state files and models. Was it edited?")
    return dict(stated)


def _input_state(model: Mapping[str, Any]) -> str:
    """Return the state of an input: "same", "changed" or "not here"."""
    source = Path(model["source"]).expanduser()
    if model["commit"] is not None or not source.is_dir():
        return "not here"
    same = all(
        (source / name).is_file() and file_hash(source / name) == digest for name, digest in model["files"].items()
    )
    return "same" if same else "changed"


def _file_state(path: Path, digest: str) -> str:
    """Return the state of a file that was read: "same", "changed" or "not here"."""
    if not path.is_file():
        return "not here"
    return "same" if file_hash(path) == digest else "changed"
