"""Write safetensors files whose layout is known beforehand: any piece of any tensor, from any thread, in any order."""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.weights.arrays import TORCH
from merge.checkpoints.weights.copying import copy_range
from merge.checkpoints.weights.read import nbytes, torch_letters
from merge.errors import OutputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Layout = Mapping[str, tuple[str, tuple[int, ...]]]  # written name -> (dtype in safetensors' letters, shape)

MAX_SHARD_SIZE = "50GB"
BLOCK_BYTES = 1 << 20  # hashed at a time: what a core's cache holds
FLUSH_BYTES = 1 << 28  # after which they are sent to the disk, so that little is left to wait for at the end


@dataclass(frozen=True)
class TensorSlot:
    """The bytes of a file that one tensor fills; `dtype` in safetensors' letters."""

    file: WeightFile
    offset: int
    dtype: str
    shape: tuple[int, ...]


class WeightFile:
    """An open file that any thread writes to at any offset, hashed by a thread of its own while it is written.

    Every writing thread has a handle of its own, so that none waits for another. The hash follows the written bytes from the
    beginning of the file up to the first gap, and its thread flushes the file to the disk on the way.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path
        self._thread = threading.local()
        self._handles = [path.open("xb", buffering=0)]
        self._thread.handle = self._handles[0]
        try:
            self._read = path.open("rb", buffering=0)
        except OSError:
            self._handles[0].close()
            raise
        self._written: dict[int, int] = {}  # start of a run of written bytes -> its end
        self._end = 0  # of the bytes that are there without a gap
        self._change = threading.Condition()
        self._closing = False
        self._hash = hashlib.sha256()
        self._failure: OSError | None = None  # of the thread that hashes
        self._hashing = threading.Thread(target=self._follow, name="hashing", daemon=True)
        self._hashing.start()

    def resize(self, size: int) -> None:
        """Give the file its final size."""
        self._handles[0].truncate(size)

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes at an offset; every byte of the file is written once."""
        if not data:
            return
        start, file = offset, self._handle()
        file.seek(offset)
        while data:
            written = file.write(data)
            data, offset = data[written:], offset + written
        self._note(start, offset)

    def copy(self, source: Path, start: int, size: int, offset: int) -> None:
        """Write bytes of another file, from its byte `start` on, at an offset; inside the kernel where it can."""
        with source.open("rb", buffering=0) as file:
            for piece in copy_range(file, start, self._handle(), offset, size):
                self._note(offset, offset + piece)
                offset += piece

    def _note(self, start: int, end: int) -> None:
        """Tell the thread that hashes that these bytes are there."""
        with self._change:
            self._written[start] = end
            while self._end in self._written:
                self._end = self._written.pop(self._end)
            self._change.notify()

    def finish(self) -> str:
        """Flush the file to the disk and return the SHA-256 of its bytes."""
        with self._change:
            self._closing = True
            self._change.notify()
        os.fsync(self._handles[0].fileno())  # meanwhile the rest is hashed
        self._hashing.join()
        if self._failure is not None:
            raise self._failure
        return self._hash.hexdigest()

    def close(self) -> None:
        """Stop hashing and close the file."""
        with self._change:
            self._closing, self._end = True, 0
            self._change.notify()
        self._hashing.join()
        for file in (*self._handles, self._read):
            file.close()

    def _handle(self) -> FileIO:
        """Return the calling thread's handle."""
        if not hasattr(self._thread, "handle"):
            self._thread.handle = self._path.open("r+b", buffering=0)
            self._handles.append(self._thread.handle)
        handle: FileIO = self._thread.handle
        return handle

    def _follow(self) -> None:
        try:
            self._hash_written()
        except OSError as error:
            self._failure = error

    def _hash_written(self) -> None:
        hashed = flushed = 0
        block = memoryview(bytearray(BLOCK_BYTES))  # one block for all: new memory costs as much as a copy
        while True:
            with self._change:
                while self._end <= hashed and not self._closing:
                    self._change.wait()
                end = self._end
            if end <= hashed:
                return
            while hashed < end:
                size = self._read.readinto(block[: min(end - hashed, BLOCK_BYTES)])
                if not size:
                    raise OSError(f"{self._path} is shorter than what was written to it")
                self._hash.update(block[:size])
                hashed += size
                if hashed - flushed >= FLUSH_BYTES:
                    os.fsync(self._handles[0].fileno())
                    flushed = hashed


@dataclass(frozen=True)
class WeightWriter:
    """The open files of a checkpoint's weights, every byte of them planned.

    Attributes:
        slots: written name -> where its bytes go, in the order of the files.
        hashes: file -> SHA-256, once the writer is closed.
    """

    slots: Mapping[str, TensorSlot]
    hashes: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, dtype: str, data: memoryview, start: int = 0) -> None:
        """Write the bytes of a flat piece of a tensor, whose first entry is entry `start` of the whole.

        Raises:
            OutputError: the piece has another dtype or more entries than planned.
        """
        slot = self.slots[name]
        size, before = data.nbytes, nbytes(slot.dtype, (start,))
        if dtype != slot.dtype or before + size > nbytes(slot.dtype, slot.shape):
            raise OutputError(
                f"{name} came out as {size} bytes of {dtype} from entry {start} on, planned are "
                f"{math.prod(slot.shape)} entries of {slot.dtype}."
            )
        slot.file.write(data, slot.offset + before)

    def copy(self, name: str, source: Path, start: int) -> None:
        """Write a whole tensor as the bytes of another file from its byte `start` on."""
        slot = self.slots[name]
        slot.file.copy(source, start, nbytes(slot.dtype, slot.shape), slot.offset)


@contextmanager
def open_writer(folder: Path, layout: Layout) -> Iterator[WeightWriter]:
    """Yield a writer for tensors of these names, dtypes and shapes; files are sharded by save_pretrained's rules.

    When the block is left the files are on the disk and hashed; if by an error, they are closed as they are.
    """
    from huggingface_hub import constants, split_state_dict_into_shards_factory

    # The one for torch tensors imports DTensor, which takes a second.
    plan = split_state_dict_into_shards_factory(
        layout,  # type: ignore[arg-type]
        get_storage_size=_size,
        filename_pattern=constants.SAFETENSORS_WEIGHTS_FILE_PATTERN,
        max_shard_size=MAX_SHARD_SIZE,
    )
    slots: dict[str, TensorSlot] = {}
    files: list[WeightFile] = []
    try:
        for name, names in plan.filename_to_tensors.items():
            files.append(WeightFile(folder / name))
            slots |= _write_header(files[-1], {name: layout[name] for name in names})
        if plan.is_sharded:
            totals = {
                "total_parameters": sum(math.prod(shape) for _, shape in layout.values()),
                "total_size": sum(map(_size, layout.values())),
            }
            index = {"metadata": totals, "weight_map": plan.tensor_to_filename}
            path = folder / "model.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8", newline="\n")
        writer = WeightWriter(slots)
        yield writer
        writer.hashes.update({file.name: file.finish() for file in files})
    finally:
        for file in files:
            file.close()


def _write_header(file: WeightFile, layout: Layout) -> dict[str, TensorSlot]:
    """Write u64 header length and JSON padded to 8 bytes, and return the tensors' slots, which follow without gaps.

    Wider dtypes go first, as safetensors orders them, so that every tensor starts at a multiple of its item size.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -nbytes(item[1][0], ())):
        size = nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    file.resize(start + end)
    file.write(memoryview(len(text).to_bytes(8, "little") + text), 0)
    header.pop("__metadata__")
    return {name: TensorSlot(file, start + header[name]["data_offsets"][0], *layout[name]) for name in header}


@dataclass(frozen=True)
class Written:
    """What was written: the bytes of all tensors, and the SHA-256 of each file that holds them."""

    bytes: int
    hashes: Mapping[str, str]


def write_weights(
    folder: Path,
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensor_of: Callable[[str], Tensor],
    copy_of: Callable[[str], tuple[Path, int] | None] = lambda _: None,
) -> Written:
    """Write whole tensors one after the other.

    Args:
        layout: written name -> (dtype, shape).
        tensor_of: returns the tensor of a written name; one is alive at a time.
        copy_of: returns file and offset of a tensor that is written as it is there; None for one that tensor_of returns.
    Raises:
        OutputError: a tensor is not what the layout promised.
    """
    letters = torch_letters()
    planned = {name: (letters[dtype], shape) for name, (dtype, shape) in layout.items()}
    with open_writer(folder, planned) as writer:
        for name, slot in writer.slots.items():
            if (copied := copy_of(name)) is not None:
                writer.copy(name, *copied)
                continue
            tensor = tensor_of(name)
            if tuple(tensor.shape) != slot.shape:
                raise OutputError(f"{name} came out as {tuple(tensor.shape)}, planned {slot.shape}.")
            writer.write(name, TORCH.dtype(tensor), TORCH.raw(tensor))
    return Written(sum(map(_size, planned.values())), writer.hashes)


def _size(planned: tuple[str, tuple[int, ...]]) -> int:
    return nbytes(*planned)
