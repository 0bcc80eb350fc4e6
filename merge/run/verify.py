"""Verify a merged folder: compare its files, and the inputs it was made of, with the hashes in its manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merge.disk.documents import read_object, shown
from merge.disk.hashes import file_hash
from merge.errors import CheckpointError
from merge.publish.card import MANIFESTS, models_inside


@dataclass(frozen=True)
class Verification:
    """The result of a verification, by file and by input.

    Attributes:
        files: file -> "same", "changed", "missing" (in the manifest only) or "not in the manifest".
        inputs: model or applied transform, by the name it was given -> "same", "changed" or "not here".
        manifest: name of the file that states the hashes.
    """

    files: Mapping[str, str]
    inputs: Mapping[str, str]
    manifest: str

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
        raise CheckpointError(
            f"{folder} cannot be verified: it has no {' or '.join(MANIFESTS)}, which merge-models and edit-layers write."
            f"{models_inside(folder)}"
        )
    stated = _read_manifest(path)
    existing = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {path.name}
    files = {}
    for name in sorted(existing | set(stated.files)):
        if name not in stated.files:
            files[name] = "not in the manifest"
        elif name not in existing:
            files[name] = "missing"
        else:
            files[name] = "same" if file_hash(folder / name) == stated.files[name] else "changed"
    inputs = [*stated.models, *([stated.base] if stated.base else [])]
    states = {model.source: _input_state(model) for model in inputs}
    states |= {path: _file_state(_expanded(path), digest) for path, digest in stated.applied.items()}
    return Verification(files, states, path.name)


class _Part(BaseModel):
    """A part of a manifest: its fields have these types, and further ones are not read."""

    model_config = ConfigDict(extra="ignore", strict=True)


class ManifestModel(_Part):
    """An input of a merge.

    Attributes:
        files: weight file -> its SHA-256.
    """

    source: str
    commit: str | None
    files: dict[str, str]


class Manifest(_Part):
    """What merge.json and edit.json state, as far as a verification reads it.

    Attributes:
        files: file of the folder -> its SHA-256.
        applied: transform file -> its SHA-256.
    """

    files: dict[str, str]
    models: list[ManifestModel]
    base: ManifestModel | None = None
    applied: dict[str, str] = Field(default_factory=dict)


def _read_manifest(path: Path) -> Manifest:
    stated = read_object(path, CheckpointError)
    try:
        return Manifest.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path} is malformed: {name}: {first['msg'].lower()}, found {shown(first['input'])}. Was it edited?"
        ) from error


def _expanded(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:  # ~somebody, whom this machine does not know
        return Path(source)


def _input_state(model: ManifestModel) -> str:
    """Return the state of an input: "same", "changed" or "not here"."""
    source = _expanded(model.source)
    if model.commit is not None or not _is_kind(source, Path.is_dir):
        return "not here"
    same = all(
        _is_kind(source / name, Path.is_file) and file_hash(source / name) == digest
        for name, digest in model.files.items()
    )
    return "same" if same else "changed"


def _is_kind(path: Path, test: Callable[[Path], bool]) -> bool:
    try:
        return test(path)
    except OSError:  # a name that is too long
        return False


def _file_state(path: Path, digest: str) -> str:
    """Return the state of a file that was read: "same", "changed" or "not here"."""
    if not _is_kind(path, Path.is_file):
        return "not here"
    return "same" if file_hash(path) == digest else "changed"
