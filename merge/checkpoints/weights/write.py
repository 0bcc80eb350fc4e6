"""Writing safetensors files whose layout is known beforehand: any tensor, in any piece, by any thread, at its own place."""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.weights.arrays import TORCH
from merge.checkpoints.weights.read import nbytes, torch_letters
from merge.errors import OutputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Layout = Mapping[str, tuple[str, tuple[int, ...]]]  # written name -> (dtype in safetensors' letters, shape)

MAX_SHARD_SIZE = "50GB"
BLOCK = 1 << 22  # bytes hashed at a time


@dataclass(frozen=True)
class Place:
    """Where the bytes of one tensor go; `dtype` in safetensors' letters."""

    file: WeightFile
    offset: int
    dtype: str
    shape: tuple[int, ...]


class WeightFile:
    """An open file that is hashed while it is written: a thread follows the end of what is there without a gap."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._written: dict[int, int] = {}  # where a run of written bytes begins -> where it ends
        self._end = 0  # of what is there without a gap
        self._change = threading.Condition()
        self._closing = False
        self._hash = hashlib.sha256()
        self._follower = threading.Thread(target=self._follow, name="hashing", daemon=True)
        self._follower.start()

    def write(self, data: memoryview, at: int) -> None:
        """Write bytes at their place; every byte is written once."""
        if not data:
            return
        begin = at
        while data:
            done = os.pwrite(self.handle, data, at)
            data, at = data[done:], at + done
        with self._change:
            self._written[begin] = at
            while self._end in self._written:
                self._end = self._written.pop(self._end)
            self._change.notify()

    def finish(self) -> str:
        """Put the file on the disk and return the SHA-256 of what it holds."""
        with self._change:
            self._closing = True
            self._change.notify()
        os.fsync(self.handle)  # meanwhile the rest is hashed
        self._follower.join()
        return self._hash.hexdigest()

    def abandon(self) -> None:
        """Stop hashing and close the file."""
        with self._change:
            self._closing, self._end = True, 0
            self._change.notify()
        self._follower.join()
        os.close(self.handle)

    def _follow(self) -> None:
        at = 0
        while True:
            with self._change:
                while self._end <= at and not self._closing:
                    self._change.wait()
                end = self._end
            if end <= at:
                return
            while at < end:
                block = os.pread(self.handle, min(end - at, BLOCK), at)
                self._hash.update(block)
                at += len(block)


@dataclass(frozen=True)
class WeightWriter:
    """The open files of a checkpoint's weights, every byte of them planned.

    Attributes:
        places: written name -> where it goes, in the order of the files.
        hashes: file -> SHA-256, once the writer is closed.
    """

    places: Mapping[str, Place]
    hashes: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, dtype: str, data: memoryview, start: int = 0) -> None:
        """Write the bytes of a flat piece of a tensor, its first entry being entry `start` of the whole.

        Raises:
            OutputError: the piece is not what the layout promised.
        """
        place = self.places[name]
        size, before = data.nbytes, nbytes(place.dtype, (start,))
        if dtype != place.dtype or before + size > nbytes(place.dtype, place.shape):
            raise OutputError(
                f"{name} came out as {size} bytes of {dtype} from entry {start} on, planned are "
                f"{math.prod(place.shape)} entries of {place.dtype}."
            )
        place.file.write(data, place.offset + before)


@contextmanager
def open_writer(folder: Path, layout: Layout) -> Iterator[WeightWriter]:
    """Yield a writer for tensors of these names, dtypes and shapes; files are sharded by save_pretrained's rules.

    When the block is left the files are on the disk and hashed; if by an error, they are closed as they are.
    """
    from huggingface_hub import constants, split_state_dict_into_shards_factory

    # Its sister for torch tensors wants to know about DTensors, which takes a second to import.
    plan = split_state_dict_into_shards_factory(
        layout,  # type: ignore[arg-type]
        get_storage_size=_size,
        filename_pattern=constants.SAFETENSORS_WEIGHTS_FILE_PATTERN,
        max_shard_size=MAX_SHARD_SIZE,
    )
    places: dict[str, Place] = {}
    files: list[WeightFile] = []
    try:
        for name, names in plan.filename_to_tensors.items():
            files.append(WeightFile(folder / name))
            places |= _write_header(files[-1], {name: layout[name] for name in names})
        if plan.is_sharded:
            totals = {
                "total_parameters": sum(math.prod(shape) for _, shape in layout.values()),
                "total_size": sum(map(_size, layout.values())),
            }
            index = {"metadata": totals, "weight_map": plan.tensor_to_filename}
            path = folder / "model.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        writer = WeightWriter(places)
        yield writer
        writer.hashes.update({file.name: file.finish() for file in files})
    finally:
        for file in files:
            file.abandon()


def _write_header(file: WeightFile, layout: Layout) -> dict[str, Place]:
    """Write u64 header length and JSON padded to 8 bytes, and return the places of the tensors, which follow without holes.

    Wider dtypes go first, as safetensors orders them, so that every tensor starts at a multiple of its item's size.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -nbytes(item[1][0], ())):
        size = nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    os.ftruncate(file.handle, start + at)
    file.write(memoryview(len(text).to_bytes(8, "little") + text), 0)
    header.pop("__metadata__")
    return {name: Place(file, start + header[name]["data_offsets"][0], *layout[name]) for name in header}


def write_weights(
    folder: Path, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], tensor_of: Callable[[str], Tensor]
) -> int:
    """Write whole tensors one after the other; return the bytes of all.

    Args:
        layout: written name -> (dtype, shape).
        tensor_of: returns the tensor of a written name; one is alive at a time.
    Raises:
        OutputError: a tensor is not what the layout promised.
    """
    letters = torch_letters()
    planned = {name: (letters[dtype], shape) for name, (dtype, shape) in layout.items()}
    with open_writer(folder, planned) as writer:
        for name, place in writer.places.items():
            tensor = tensor_of(name)
            if tuple(tensor.shape) != place.shape:
                raise OutputError(f"{name} came out as {tuple(tensor.shape)}, planned {place.shape}.")
            writer.write(name, TORCH.dtype(tensor), TORCH.raw(tensor))
    return sum(map(_size, planned.values()))


def _size(planned: tuple[str, tuple[int, ...]]) -> int:
    return nbytes(*planned)
