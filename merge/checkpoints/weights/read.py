"""Read weight files: safetensors and weights-only pickles, whole or in shards, headers first."""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.weights.pickled import load_pickle
from merge.disk.documents import LFS_POINTER, NOT_FETCHED, check_regular, parse_json, read_object
from merge.errors import CheckpointError, first_line, some
from merge.machine import map_file

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

Header = tuple[str, tuple[int, ...], str, int | None]  # name, shape, dtype, offset
# Endings of files that hold weights in other forms than are read here.
OTHER_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt", ".pt", ".pth", ".distcp")
INTEGER_DTYPES = ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL")
NUMPY_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "?"} | {
    f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a weight file, as its header describes it; `dtype` in safetensors' letters (F32, BF16, I64).

    Attributes:
        offset: of its first byte in the file; None in a pickle, which torch alone can read.
        rows: the rows (first, end) of what the file holds under that name; None for all of them.
        original_dtype: of the user's model, where the tensor was rewritten in a wider dtype.
        converted: whether transformers makes tensors of other names and shapes of it when it loads the model.
    """

    file: str
    stored_name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int | None = None
    rows: tuple[int, int] | None = None
    original_dtype: str | None = None
    converted: bool = False

    @property
    def result_dtype(self) -> str:
        """The dtype that a merge of this tensor is written in, unless the recipe names one."""
        return self.original_dtype or self.dtype

    @property
    def is_integer(self) -> bool:
        return self.dtype in INTEGER_DTYPES

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return nbytes(self.dtype, self.shape)

    def blocks(self, count: int) -> tuple[StoredTensor, ...]:
        """Return so many equal blocks of rows, in their order; for one block the tensor itself.

        Raises:
            CheckpointError: the number of rows is no multiple of the count.
        """
        if count == 1:
            return (self,)
        total, *others = self.shape or (1,)
        if total % count:
            raise CheckpointError(
                f"{self.file}: {self.stored_name} of shape {self.shape} is not {count} equal blocks of rows."
            )
        size, shape = total // count, (total // count, *others)
        step = nbytes(self.dtype, shape)
        return tuple(
            replace(
                self,
                shape=shape,
                offset=None if self.offset is None else self.offset + k * step,
                rows=(k * size, (k + 1) * size),
            )
            for k in range(count)
        )


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor by its dtype, in safetensors' letters, and its shape."""
    bits = 8 if dtype == "BOOL" else int("".join(filter(str.isdigit, dtype.split("_")[0])))
    return math.prod(shape) * bits // 8


def read_headers(folder: Path, source: str) -> dict[str, StoredTensor]:
    """Return stored name -> header, for every tensor of a folder.

    Raises:
        CheckpointError: there is no weight file, one cannot be read, or an index and its shards disagree.
    """
    tensors: dict[str, StoredTensor] = {}
    for file, promised in _weight_files(folder, source).items():
        path = folder / file
        _check_fetched(path, f"{source}: {file}")
        headers = _safetensors_headers(path) if file.endswith(".safetensors") else _pickle_headers(path)
        for name, shape, dtype, offset in headers:
            if name in tensors:
                raise CheckpointError(f"{source}: tensor {name} is in {tensors[name].file} and again in {file}.")
            tensors[name] = StoredTensor(file, name, shape, dtype, offset)
        lacking = [name for name in promised if name not in tensors or tensors[name].file != file]
        if lacking:
            raise CheckpointError(
                f"{source}: {file} lacks {len(lacking)} tensors that the index places there, {lacking[0]} among them."
            )
    if not tensors:
        raise CheckpointError(f"{source} holds no tensor.")
    return tensors


def _check_fetched(path: Path, name: str) -> None:
    """Stop where a file is the pointer that git leaves in its place."""
    with contextlib.suppress(OSError):  # its reader says what is wrong
        check_regular(path)
        with path.open("rb") as file:
            begin = file.read(len(LFS_POINTER))
        if begin == LFS_POINTER.encode():
            raise CheckpointError(f"{name} {NOT_FETCHED}")


def _weight_files(folder: Path, source: str) -> dict[str, list[str]]:
    """Return the weight files as transformers chooses: safetensors before .bin, one whole file before an index."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).is_file():
            return {single: []}
        if (folder / f"{single}.index.json").is_file():
            return _shards(folder, f"{single}.index.json", source)
    files = (*folder.glob("*"), *folder.glob("*/*"))
    found = sorted(path.relative_to(folder).as_posix() for path in files if path.suffix in OTHER_WEIGHTS)
    raise CheckpointError(
        f"{source} holds no weights: expected model.safetensors, its index with shards, or pytorch_model.bin"
        f"{f', found {some(found)}' if found else ''}."
    )


def _shards(folder: Path, index: str, source: str) -> dict[str, list[str]]:
    """Return shard -> the tensors that the index lists for it."""
    placed = read_object(folder / index, CheckpointError, name=f"{source}: {index}").get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise CheckpointError(
            f"{source}: {index} is malformed; expected weight_map, a mapping of tensor names to shard files."
        )
    shards: dict[str, list[str]] = {shard: [] for shard in sorted(set(placed.values()))}
    foreign = [shard for shard in shards if Path(shard).name != shard]
    if foreign:
        raise CheckpointError(f"{source}: {index} names shards outside its folder: {', '.join(foreign)}.")
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise CheckpointError(f"{source}: {index} lists {len(shards)} shards, missing {', '.join(absent)}.")
    for name, shard in placed.items():
        shards[shard].append(name)
    return shards


def _safetensors_headers(path: Path) -> Iterator[Header]:
    """Yield the tensors of the header in the order of the file: u64 length of the header, JSON, then the data.

    The safetensors library judges the file; what it takes is read here again for the offsets, which it does not tell.
    """
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(path)
        with safe_open(path, framework="np"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({first_line(error)}). Truncated or corrupted? Copy it again."
        ) from error
    header = parse_json(text, f"{path}: the header", CheckpointError)
    header.pop("__metadata__", None)
    spans = sorted(
        (*entry["data_offsets"], name, tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()
    )
    for begin, _, name, shape, dtype in spans:
        yield name, shape, dtype, 8 + length + begin


def _pickle_headers(path: Path) -> Iterator[Header]:
    letters = torch_letters()
    for name, tensor in load_pickle(path).items():
        if tensor.dtype not in letters:
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}, which no safetensors file holds.")
        yield name, tuple(tensor.shape), letters[tensor.dtype], None


class MappedFile:
    """A memory-mapped safetensors file: a page of it is in memory once it is touched."""

    def __init__(self, path: Path) -> None:
        """Raises:
        CheckpointError: the file cannot be mapped.
        """
        self._path = path
        try:
            with path.open("rb") as file:
                self._bytes = map_file(file)
        except (OSError, ValueError) as error:
            too_many = isinstance(error, OSError) and error.errno == errno.EMFILE
            advice = " Allow more open files (ulimit -n), or save the models in fewer files." if too_many else ""
            raise CheckpointError(f"{path}: cannot be read as safetensors ({first_line(error)}).{advice}") from error

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Return a tensor of the file, not to be written to.

        Raises:
            CheckpointError: the file has become shorter, or torch has no such dtype.
        """
        import torch

        dtype = _torch_dtypes().get(stored.dtype)
        if dtype is None:
            return self._by_library(stored)
        if not stored.elements:
            return torch.empty(stored.shape, dtype=dtype)
        return torch.frombuffer(self._bytes, dtype=dtype, count=stored.elements, offset=self._offset(stored)).reshape(
            stored.shape
        )

    def array(self, stored: StoredTensor) -> NDArray[Any]:
        """Return a tensor of the file as a read-only array.

        Raises:
            CheckpointError: the file has become shorter.
        """
        import numpy as np

        array: NDArray[Any] = np.ndarray(stored.shape, numpy_dtype(stored.dtype), self._bytes, self._offset(stored))
        array.flags.writeable = False
        return array

    def release_pages(self) -> None:
        """Let the pages go that were touched: they are no longer memory of this process until they are touched again."""
        if hasattr(mmap, "MADV_DONTNEED"):  # not on every system
            self._bytes.madvise(mmap.MADV_DONTNEED)

    def _offset(self, stored: StoredTensor) -> int:
        offset = stored.offset or 0
        end, size = offset + stored.nbytes, self._bytes.size()  # of the file as it is now
        if end > size:
            raise CheckpointError(
                f"{self._path}: {stored.stored_name} ends at byte {end}, and the file now at {size}: it became shorter while "
                "it was read. Copy it again."
            )
        return offset

    def _by_library(self, stored: StoredTensor) -> Tensor:
        """Return a tensor of a dtype whose entries are no whole bytes, or which torch does not have."""
        from safetensors import SafetensorError, safe_open

        try:
            whole: Tensor = safe_open(self._path, framework="pt").get_tensor(stored.stored_name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self._path}: cannot be read as safetensors ({first_line(error)}).") from error
        return whole if stored.rows is None else whole[slice(*stored.rows)]


def numpy_dtype(letters: str) -> str:
    """Return numpy's dtype of safetensors' letters: void (V) where numpy has none, as for bfloat16."""
    return NUMPY_DTYPES.get(letters, f"V{nbytes(letters, ())}")


def as_array(tensor: Tensor, dtype: str) -> NDArray[Any]:
    """Return a tensor as an array of the same bytes; `dtype` in safetensors' letters."""
    import torch

    flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat.view(numpy_dtype(dtype)).reshape(tensor.shape)


@cache
def _torch_dtypes() -> dict[str, torch.dtype]:
    """Return safetensors' letters -> torch's dtype, of dtypes whose entries are whole bytes."""
    return {letters: dtype for dtype, letters in torch_letters().items() if dtype.itemsize == nbytes(letters, ())}


@cache
def torch_letters() -> dict[torch.dtype, str]:
    """Return torch's dtype -> safetensors' letters."""
    from safetensors.torch import _TYPES

    return {dtype: name for name, dtype in _TYPES.items()}
