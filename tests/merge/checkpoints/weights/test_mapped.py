"""A memory-mapped safetensors file: its tensors are those that the library reads, and its pages can be let go."""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import _TYPES, load_file, save_file
from tiny import save_checkpoint
from torch import Tensor

from merge.checkpoints.checkpoint import finite
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.weights.read import MappedFile, StoredTensor, nbytes, read_headers
from merge.errors import CheckpointError

FILE = "model.safetensors"


def opened(folder: Path, tensors: dict[str, Tensor]) -> tuple[MappedFile, dict[str, StoredTensor]]:
    save_file(tensors, folder / FILE)
    return MappedFile(folder / FILE), read_headers(folder, "a")


def some_of(dtype: torch.dtype) -> Tensor:
    """Return a matrix of a dtype with all kinds of bytes in it."""
    data = torch.arange(4 * 6 * dtype.itemsize, dtype=torch.uint8) * 37
    return data.remainder(2).bool().reshape(4, 6) if dtype == torch.bool else data.view(dtype).reshape(4, 6)


def same_bytes(one: Tensor, other: Tensor) -> bool:
    bytes_of = [each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bytes_of)


def test_tensors_of_every_dtype_are_those_that_the_library_reads(tmp_path: Path) -> None:
    tensors = {letters: some_of(dtype) for letters, dtype in _TYPES.items()}
    tensors |= {"packed": torch.arange(24, dtype=torch.uint8).reshape(4, 6).view(torch.float4_e2m1fn_x2)}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 7), "one": torch.ones(1)}
    mapped, headers = opened(tmp_path, tensors)
    with safe_open(tmp_path / FILE, framework="pt") as library:
        for name in tensors:
            assert same_bytes(mapped.tensor(headers[name]), library.get_tensor(name)), name
    for name, stored in headers.items():
        if name != "packed":  # half a byte each
            array = mapped.array(stored)
            assert array.tobytes() == tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), name


def test_the_library_reads_what_has_no_whole_bytes_in_rows_too(tmp_path: Path) -> None:
    mapped, headers = opened(tmp_path, {"w": torch.zeros(4, 6, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)})
    second = headers["w"].blocks(2)[1]
    assert mapped.tensor(second).shape == (2, 6)


def test_tensors_whose_bytes_begin_anywhere_are_read(tmp_path: Path) -> None:
    """Headers of other writers are not filled up to a multiple of eight bytes."""
    values = torch.randn(3, 5)
    header = json.dumps({"w": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]}}).encode()
    header += b" " * ((1 - len(header)) % 4)
    assert (8 + len(header)) % 4 == 1
    (tmp_path / FILE).write_bytes(struct.pack("<Q", len(header)) + header + values.numpy().tobytes())
    mapped, stored = MappedFile(tmp_path / FILE), read_headers(tmp_path, "a")["w"]
    assert torch.equal(mapped.tensor(stored), values)
    assert torch.equal(mapped.tensor(stored) @ torch.eye(5), values)
    assert np.array_equal(mapped.array(stored), values.numpy())


def test_blocks_of_rows_are_parts_of_the_tensor_and_arrays_are_read_only(tmp_path: Path) -> None:
    values = torch.randn(6, 4).bfloat16()
    mapped, headers = opened(tmp_path, {"other": torch.ones(3), "w": values})
    parts = [mapped.tensor(block) for block in headers["w"].blocks(3)]
    assert torch.equal(torch.cat(parts), values)
    with pytest.raises(ValueError, match="read-only"):
        mapped.array(headers["other"])[0] = 2.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_that_are_let_go_are_no_memory_of_the_process_and_are_read_again(tmp_path: Path) -> None:
    def in_memory() -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(re.search(r"RssFile:\s+(\d+)", status)[1])  # type: ignore[index]

    values = torch.randn(1 << 22)
    mapped, headers = opened(tmp_path, {"w": values})
    tensor, before = mapped.tensor(headers["w"]), in_memory()
    assert torch.equal(tensor, values)
    touched = in_memory() - before
    assert touched > 0.9 * values.nbytes  # the control: they are its memory until then
    mapped.release_pages()
    assert in_memory() - before < 0.1 * values.nbytes
    assert torch.equal(tensor, values)


def test_a_file_that_became_shorter_is_one_line(tmp_path: Path) -> None:
    mapped, headers = opened(tmp_path, {"a": torch.ones(4), "w": torch.ones(1000)})
    end = (headers["w"].offset or 0) + nbytes("F32", (1000,))
    os.truncate(tmp_path / FILE, end - 1)
    assert torch.equal(mapped.tensor(headers["a"]), torch.ones(4))
    for read in (mapped.tensor, mapped.array):
        with pytest.raises(CheckpointError, match=f"w ends at byte {end}, and the file now at {end - 1}") as caught:
            read(headers["w"])
        assert "\n" not in str(caught.value)
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        MappedFile(tmp_path / FILE)


@pytest.mark.skipif(sys.platform != "linux", reason="overcommitted memory is Linux's")
def test_a_file_larger_than_memory_is_mapped(tmp_path: Path) -> None:
    """Its bytes are not reserved: only what is touched is read. The control: a map that may be written to is refused."""
    rows, columns = 1 << 11, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 11
    entry = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, 4 * rows * columns]}
    header = json.dumps({"w": entry}).encode()
    with (tmp_path / FILE).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * rows * columns)
    stored = read_headers(tmp_path, "a")["w"]
    mapped = MappedFile(tmp_path / FILE)
    assert float(mapped.tensor(stored)[-1, -1]) == 0.0 == mapped.array(stored)[-1, -1]
    if Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "0":
        with (tmp_path / FILE).open("rb") as file, pytest.raises(OSError, match="Cannot allocate memory"):
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


LIMITED = """
import resource, sys
from pathlib import Path
from merge.checkpoints.weights.read import MappedFile
resource.setrlimit(resource.RLIMIT_NOFILE, (40, int(sys.argv[2])))
maps = [MappedFile(Path(sys.argv[1])) for _ in range(80)]
print(len(maps))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
@pytest.mark.parametrize("hard", [200, 40])
def test_a_model_of_many_files_needs_no_ulimit(hard: int, tmp_path: Path) -> None:
    """A map keeps its file open. The control: where the system allows no more, the line says what to do."""
    save_file({"w": torch.ones(2)}, tmp_path / FILE)
    words = [sys.executable, "-c", LIMITED, str(tmp_path / FILE), str(hard)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    if hard == 200:
        assert done.stdout == "80\n", done.stderr
    else:
        assert "Too many open files). Allow more open files (ulimit -n), or save" in done.stderr


def test_weights_of_two_numbers_in_a_byte_are_refused_in_one_line(tmp_path: Path) -> None:
    """torch stores them, and computes nothing with them. The control: bfloat16, which it computes with."""
    folder = save_checkpoint(tmp_path / "a")
    tensors = load_file(folder / FILE)
    name = next(name for name in tensors if name.endswith("LayerNorm.bias"))
    save_file({**tensors, name: tensors[name].bfloat16()}, folder / FILE, metadata={"format": "pt"})
    assert finite(open_checkpoint(str(folder)), name).dtype == torch.float32
    packed = torch.zeros(len(tensors[name]) // 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    save_file({**tensors, name: packed}, folder / FILE, metadata={"format": "pt"})
    message = "is stored as torch.float4_e2m1fn_x2, which torch does not compute with"
    with pytest.raises(CheckpointError, match=message) as caught:
        finite(open_checkpoint(str(folder)), name)
    assert "\n" not in str(caught.value)
