"""Checkpoint: a local folder or Hub id, its config, its tensors (lazy, memory-mapped) and its side files.

Tensors have *canonical* names (merge.checkpoints.names.canonical), tied tensors one name, their source's; buffers that older
versions stored are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from merge.checkpoints.modules import Module, is_module_tensor, read_modules
from merge.checkpoints.names.canonical import canonical_name, is_base
from merge.checkpoints.structure import Structure
from merge.checkpoints.tokenizers.files import has_tokenizer, tokenizer_names
from merge.checkpoints.weights.pickled import load_pickle
from merge.checkpoints.weights.read import MappedFile, StoredTensor, as_array
from merge.disk.hashes import file_hash, remembered_hash
from merge.errors import CheckpointError

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
        side_files: relative paths of the files that are copied with the weights (tokenizer, modules, licence).
        left_behind: relative paths of all other files (weights of other formats, scores, logs), which are not copied.
        notes: changes of names and left-out tensors, for the user.
        extra: tensors of the file that the class does not have; `with_extra` makes them tensors of the checkpoint.
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
    extra: Mapping[str, StoredTensor] = field(default_factory=dict)
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
        return has_tokenizer(self.folder, self.side_files, self.config)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape."""
        return {name: stored.shape for name, stored in self.tensors.items()}

    def with_extra(self, names: Collection[str] | None = None) -> Checkpoint:
        """Return the checkpoint with tensors that its class does not have: those named, or all of them."""
        chosen = {n: t for n, t in self.extra.items() if names is None or n in names}
        if not chosen:
            return self
        others = {n: t for n, t in self.extra.items() if n not in chosen}
        return replace(self, tensors=dict(sorted({**self.tensors, **chosen}.items())), extra=others)

    def tensor(self, name: str) -> Tensor:
        """Return one tensor by its canonical name: a view of the memory-mapped file, not to be written to.

        Raises:
            CheckpointError: the bytes cannot be read.
        """
        stored = self._stored(name)
        if stored.offset is not None:
            return self._opened(stored.file, MappedFile).tensor(stored)
        whole = self._opened(stored.file, load_pickle)[stored.stored_name]
        return whole if stored.rows is None else whole[slice(*stored.rows)]

    def array(self, name: str) -> NDArray[Any]:
        """Return one tensor as a read-only numpy array, memory-mapped; from a pickle through torch.

        Numpy has no bfloat16: its void dtype of two bytes (V2) represents it.

        Raises:
            CheckpointError: the bytes cannot be read.
        """
        stored = self._stored(name)
        if stored.offset is None:
            return as_array(self.tensor(name), stored.dtype)
        return self._opened(stored.file, MappedFile).array(stored)

    def _stored(self, name: str) -> StoredTensor:
        return self.tensors[name] if name in self.tensors else self.extra[name]

    def _opened(self, file: str, open_file: Callable[[Path], Opened]) -> Opened:
        if (file, open_file) not in self._files:
            self._files[file, open_file] = open_file(self.folder / file)
        opened: Opened = self._files[file, open_file]
        return opened

    def unmap(self) -> None:
        """Let the maps of weight files go that nothing reads any longer; they are opened again when a tensor is asked for.

        A pickle that was read whole stays.
        """
        stored = (*self.tensors.values(), *self.extra.values())
        for file in {each.file for each in stored if each.offset is not None}:
            self._files.pop((file, MappedFile), None)

    def release_pages(self) -> None:
        """Let the pages of weight files go that were touched; tensors stay as they are, and read them again when used."""
        for opened in self._files.values():
            if isinstance(opened, MappedFile):
                opened.release_pages()

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
        for name in ("config.json", *tokenizer_names(self.folder)):
            parts[name] = file_hash(self.folder / name)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def finite_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint, in float32 or better.

    Raises:
        CheckpointError: a tensor holds NaN or infinity.
    """
    return {name: finite(checkpoint, name) for name in checkpoint.tensors}


def absent_pooler(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return zeros for the pooler that transformers adds to a base model which was stored without one.

    No hidden state depends on it.
    """
    import torch

    if not is_base(checkpoint.structure):
        return {}
    shapes = {checkpoint.canonical_name(name): shape for name, shape in checkpoint.structure.shapes.items()}
    return {n: torch.zeros(s) for n, s in shapes.items() if n not in checkpoint.tensors and ".pooler." in n}


def without_absent_pooler(checkpoint: Checkpoint, model: Any) -> Any:
    """Return a live model without the pooler that its checkpoint was stored without, so that none is measured."""
    if absent_pooler(checkpoint) and getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def finite(checkpoint: Checkpoint, name: str) -> Tensor:
    """Return one tensor in float32 or better, integers as they are.

    Raises:
        CheckpointError: it holds NaN or infinity, or is of a dtype that torch does not compute with.
    """
    import torch

    tensor = checkpoint.tensor(name)
    if not tensor.is_floating_point():
        return tensor
    try:
        ends = torch.aminmax(tensor) if tensor.numel() else ()
    except NotImplementedError:  # of two numbers in a byte
        raise CheckpointError(
            f"{checkpoint.source}: {name} is stored as {tensor.dtype}, which torch does not compute with. Save the model in "
            "float32, float16 or bfloat16."
        ) from None
    if not all(bool(torch.isfinite(end)) for end in ends):
        raise CheckpointError(f"{checkpoint.source}: {name} holds NaN or infinity. This model is broken; leave it out.")
    return tensor if tensor.dtype == torch.float64 else tensor.float()
