"""Checkpoint: a local folder or Hub id, its config, its tensors (lazy, memory-mapped) and its side files.

Tensors have *canonical* names (merge.checkpoints.names.canonical), tied tensors one name, their source's; buffers that older
versions stored are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from merge.checkpoints.hub.download import download, looks_like_hub_id
from merge.checkpoints.modules import Module, is_module_tensor, module_tensors, read_modules
from merge.checkpoints.names.buffers import buffer_of
from merge.checkpoints.names.canonical import canonical_name, canonicalise
from merge.checkpoints.side_files import side_files
from merge.checkpoints.structure import Structure, structure_of
from merge.checkpoints.weights.read import StoredTensor, as_array, open_arrays, open_weights, read_headers
from merge.disk.hashes import file_hash, remembered_hash
from merge.errors import CheckpointError, first_line, some

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Opened = TypeVar("Opened")
SAMPLED_ENTRIES = 64  # of each tensor, in the fingerprint


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint opened by its headers; weights are read when asked for.

    Attributes:
        source: what the user typed.
        folder: of the files.
        commit: the Hub commit, or None for a local folder.
        structure: what transformers makes of the config.
        tensors: canonical name -> where it is stored.
        writes_prefix: whether transformers writes these names with the prefix (it does not for the base model alone).
        side_files: relative paths of tokenizer and other files, which are copied with the weights.
        left_behind: relative paths of files that are not copied (weights of other formats, training state).
        notes: changes of names and left-out tensors, for the user.
    """

    source: str
    folder: Path
    commit: str | None
    structure: Structure
    tensors: Mapping[str, StoredTensor]
    writes_prefix: bool
    side_files: tuple[str, ...]
    left_behind: tuple[str, ...]
    notes: tuple[str, ...] = ()
    _files: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def encoder(self) -> Checkpoint:
        """The checkpoint as transformers loads it: without the tensors of sentence-transformers modules."""
        tensors = {name: stored for name, stored in self.tensors.items() if not is_module_tensor(name)}
        return self if len(tensors) == len(self.tensors) else replace(self, tensors=tensors)

    @property
    def modules(self) -> tuple[Module, ...] | None:
        """The modules of a sentence-transformers folder in their order; None where the folder is none.

        Raises:
            CheckpointError: modules.json cannot be read.
        """
        # Kept with the opened files, which all parts of this checkpoint share: modules.json is read once.
        if "modules" not in self._files:
            self._files["modules"] = read_modules(self.folder)
        modules: tuple[Module, ...] | None = self._files["modules"]
        return modules

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json, complete with the family's defaults."""
        return self.structure.config

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def architecture(self) -> str:
        return self.structure.architecture

    @property
    def has_tokenizer(self) -> bool:
        return any(Path(f).name in ("tokenizer.json", "vocab.txt") and "/" not in f for f in self.side_files)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape."""
        return {name: stored.shape for name, stored in self.tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """Return one tensor by its canonical name: a view of the memory-mapped file, not to be written to.

        Raises:
            CheckpointError: the bytes cannot be read.
        """
        stored = self.tensors[name]
        whole: Tensor = self._opened(stored.file, open_weights)(stored.stored_name)
        return whole if stored.rows is None else whole[slice(*stored.rows)]

    def array(self, name: str) -> NDArray[Any]:
        """Return one tensor as a read-only numpy array, memory-mapped; from a pickle through torch.

        Numpy has no bfloat16: its void dtype of two bytes (V2) represents it.

        Raises:
            CheckpointError: the bytes cannot be read.
        """
        stored = self.tensors[name]
        if stored.offset is None:
            return as_array(self.tensor(name), stored.dtype)
        return self._opened(stored.file, open_arrays)(stored)

    def _opened(self, file: str, open_file: Callable[[Path], Opened]) -> Opened:
        if (file, open_file) not in self._files:
            self._files[file, open_file] = open_file(self.folder / file)
        opened: Opened = self._files[file, open_file]
        return opened

    def state_dict(self) -> dict[str, Tensor]:
        """Return every tensor by its canonical name, memory-mapped."""
        return {name: self.tensor(name) for name in self.tensors}

    def written_name(self, name: str) -> str:
        """Return the name under which transformers writes the canonical `name` for this architecture."""
        return name if self.writes_prefix else name.removeprefix(f"{self.structure.prefix}.")

    def canonical_name(self, name: str) -> str:
        """Return the canonical name of a tensor that transformers writes, or once wrote, as `name`."""
        return canonical_name(name, self.structure)

    @cached_property
    def weight_hashes(self) -> dict[str, str]:
        """SHA-256 of each weight file."""
        return {name: remembered_hash(self.folder / name) for name in sorted({t.file for t in self.tensors.values()})}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes, dtypes and a sample of every tensor's bytes: the same in any shard layout."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            stored, flat = self.tensors[name], self.array(name).reshape(-1)
            digest.update(f"{name} {stored.shape} {stored.dtype}\n".encode())
            digest.update(flat[:: max(1, flat.size // SAMPLED_ENTRIES)].tobytes())
        return digest.hexdigest()

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over weights, config and tokenizer, which determine the model's outputs."""
        parts = dict(self.weight_hashes)
        for name in ("config.json", "tokenizer.json", "vocab.txt", "tokenizer_config.json"):
            if (self.folder / name).is_file():
                parts[name] = file_hash(self.folder / name)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def open_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Open a local folder, or a Hub id where no such folder exists, reading headers only.

    The tensors of sentence-transformers modules are the checkpoint's too; `Checkpoint.encoder` is without them.

    Raises:
        CheckpointError: the path is missing, is no checkpoint, or holds something that cannot be read.
        HubError: a Hub id that cannot be fetched.
    """
    encoder = open_encoder(source, revision)
    files = (*encoder.left_behind, *encoder.side_files)
    tensors = module_tensors(encoder.folder, source, encoder.modules or (), files)
    if not tensors:
        return encoder
    read = {stored.file for stored in tensors.values()}
    left = tuple(name for name in encoder.left_behind if name not in read)
    return replace(encoder, tensors={**encoder.tensors, **tensors}, left_behind=left)


def open_encoder(source: str, revision: str | None = None) -> Checkpoint:
    """Open what transformers loads of a folder or Hub id; weights of sentence-transformers modules are not looked at.

    Raises:
        CheckpointError, HubError: as `open_checkpoint`.
    """
    folder, commit = _locate(source, revision)
    config = _read_config(folder, source)
    stored = read_headers(folder, source)
    try:
        structure = structure_of(config)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    tensors, notes = canonicalise(stored, structure, source)
    side, left = side_files(folder, {t.file for t in stored.values()})
    opened = Checkpoint(source, folder, commit, structure, tensors, structure.writes_prefix, side, left, tuple(notes))
    _check_shapes(opened)
    kept, copy_notes = _drop_copies(opened)
    kept = dict(sorted(kept.items()))  # the same order whatever that of files and shards
    return replace(opened, tensors=kept, notes=(*notes, *copy_notes, *_mixed_dtypes(kept, source)))


def _mixed_dtypes(tensors: Mapping[str, StoredTensor], source: str) -> list[str]:
    counts = Counter(stored.dtype for stored in tensors.values() if not stored.is_integer)
    listed = ", ".join(f"{count} {dtype}" for dtype, count in sorted(counts.items()))
    return [f"{source}: its tensors are of several dtypes: {listed}"] if len(counts) > 1 else []


def _locate(source: str, revision: str | None) -> tuple[Path, str | None]:
    try:
        folder = Path(source).expanduser()
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a user that does not exist
        raise CheckpointError(f"{source}: not a path that can be read: {first_line(error)}") from error
    if is_folder:
        if revision is not None:
            raise CheckpointError(f"{source} is a local folder, which has no revision {revision!r}. Drop --revision.")
        return folder, None
    if exists:
        raise CheckpointError(f"{source} is a file; expected a checkpoint folder (config.json and model.safetensors).")
    if looks_like_hub_id(source):
        snapshot = download(source, revision)
        return snapshot.folder, snapshot.commit
    raise CheckpointError(f"{source}: no such folder, and not a Hub id of the form org/name.")


def _read_config(folder: Path, source: str) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{source} is not a checkpoint: it has no config.json. Expected a folder as save_pretrained writes."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{source}: config.json cannot be read: {first_line(error)}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"{source}: config.json names no model_type; this is not a transformers checkpoint.")
    return config


def _check_shapes(opened: Checkpoint) -> None:
    """Stop where the shapes of tensors are not those that config.json gives."""
    expected = opened.structure.shapes
    wrong = [
        f"{name} is {opened.tensors[name].shape}, by config.json {expected[written]}"
        for name in opened.tensors
        if (written := opened.written_name(name)) in expected and opened.tensors[name].shape != expected[written]
    ]
    if wrong:
        raise CheckpointError(
            f"{opened.source}: the weights are not of the sizes that config.json states: {some(wrong, separator='; ')}."
        )


def _drop_copies(opened: Checkpoint) -> tuple[dict[str, StoredTensor], list[str]]:
    """Drop tied tensors and buffers, after checking that they are copies or follow from the config."""
    kept, notes = dict(opened.tensors), []
    structure = opened.structure
    for target, source in ((opened.canonical_name(t), opened.canonical_name(s)) for t, s in structure.ties.items()):
        if target not in kept:
            continue
        if source not in kept:
            kept[source] = kept.pop(target)
            continue
        if not _equal(opened, target, source):
            raise CheckpointError(
                f"{opened.source}: {target} and {source} differ, but config.json ties them. "
                "Set tie_word_embeddings to false, or save the model again with save_pretrained."
            )
        del kept[target]
        notes.append(f"{opened.source}: {target} is a copy of {source} (tied); kept once")
    return _drop_buffers(opened, kept, notes)


def _drop_buffers(
    opened: Checkpoint, tensors: Mapping[str, StoredTensor], notes: list[str]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Drop buffers, after checking that they are what the config gives."""
    dropped: dict[str, list[str]] = {}
    for name in (n for n in tensors if opened.written_name(n) not in opened.structure.shapes):
        buffer = buffer_of(name, len(tensors[name].shape))
        if buffer is None:
            continue
        if not buffer.matches(_numbers(opened, name), opened.structure):
            raise CheckpointError(
                f"{opened.source}: {name} is not {buffer.content}: {buffer.other} of its own cannot be kept."
            )
        dropped.setdefault(buffer.content, []).append(name)
    dropped_notes = [
        f"{opened.source}: {first}{f' and {len(more)} more' if more else ''} ({content}) "
        "is no longer stored by transformers; left out"
        for content, (first, *more) in dropped.items()
    ]
    left_out = {name for names in dropped.values() for name in names}
    return {name: stored for name, stored in tensors.items() if name not in left_out}, [*notes, *dropped_notes]


def _numbers(opened: Checkpoint, name: str) -> NDArray[Any]:
    numbers = opened.array(name)
    return numbers if numbers.dtype.kind != "V" else opened.tensor(name).float().numpy()


def _equal(opened: Checkpoint, a: str, b: str) -> bool:
    import numpy as np

    left, right = (opened.array(name) for name in (a, b))
    bits = f"u{left.dtype.itemsize}"
    if left.dtype == right.dtype and np.array_equal(left.view(bits), right.view(bits)):
        return True
    import torch  # equal numbers may have other bytes: another dtype, zeros of another sign

    return torch.equal(opened.tensor(a), opened.tensor(b))


def finite_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint, in float32 or better.

    Raises:
        CheckpointError: a tensor holds NaN or infinity.
    """
    return {name: finite(checkpoint, name) for name in checkpoint.tensors}


def finite(checkpoint: Checkpoint, name: str) -> Tensor:
    """Return one tensor in float32 or better, integers as they are.

    Raises:
        CheckpointError: it holds NaN or infinity.
    """
    import torch

    tensor = checkpoint.tensor(name)
    if not tensor.is_floating_point():
        return tensor
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{checkpoint.source}: {name} holds NaN or infinity. This model is broken; leave it out.")
    return tensor if tensor.dtype == torch.float64 else tensor.float()
