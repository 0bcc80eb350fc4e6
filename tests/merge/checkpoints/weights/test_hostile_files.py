"""Damaged weight files: the safetensors library judges headers, and ours agrees; a .bin holds dense tensors or is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from merge.checkpoints.weights.pickled import load_pickle
from merge.checkpoints.weights.read import read_headers
from merge.errors import CheckpointError

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS: dict[str, Any] = {
    "sound": {"a": ENTRY},
    "metadata": {"__metadata__": {"format": "pt"}, "a": ENTRY},
    "float offsets": {"a": ENTRY | {"data_offsets": [0.0, 8.0]}},
    "float shape": {"a": ENTRY | {"shape": [2.0]}},
    "text shape": {"a": ENTRY | {"shape": ["2"]}},
    "true as offset": {"a": ENTRY | {"data_offsets": [False, 8]}},
    "negative offset": {"a": ENTRY | {"data_offsets": [-8, 0]}},
    "three offsets": {"a": ENTRY | {"data_offsets": [0, 4, 8]}},
    "huge shape": {"a": ENTRY | {"shape": [2**63, 2**63]}},
    "gap": {"a": ENTRY | {"shape": [1], "data_offsets": [4, 8]}},
    "overlap": {"a": ENTRY, "b": ENTRY},
    "unknown dtype": {"a": ENTRY | {"dtype": "F31"}},
    "no dtype": {"a": {"shape": [2], "data_offsets": [0, 8]}},
    "null": {"a": None},
    "further entry": {"a": ENTRY | {"more": 1}},
    "metadata a list": {"__metadata__": [1], "a": ENTRY},
    "metadata a number": {"__metadata__": 1, "a": ENTRY},
    "metadata of numbers": {"__metadata__": {"a": 1}, "a": ENTRY},
    "metadata null": {"__metadata__": None, "a": ENTRY},
    "list": [ENTRY],
}


def written(folder: Path, header: bytes, length: int | None = None) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + bytes(8))
    return path


def accepted(read: Callable[[], Any], refusal: type[Exception]) -> bool:
    try:
        read()
    except refusal:
        return False
    return True


def both(path: Path) -> tuple[bool, bool]:
    """Return whether we accept a file, and whether the library does."""

    def by_library() -> None:
        with safe_open(path, framework="pt"):
            pass

    return accepted(lambda: read_headers(path.parent, "a"), CheckpointError), accepted(by_library, SafetensorError)


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_accepted_where_the_library_accepts_it(name: str, tmp_path: Path) -> None:
    ours, theirs = both(written(tmp_path, json.dumps(HEADERS[name]).encode()))
    assert ours == theirs
    assert theirs or name not in ("sound", "metadata")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_header_in_another_encoding_is_refused_as_by_the_library(encoding: str, tmp_path: Path) -> None:
    assert both(written(tmp_path, json.dumps(HEADERS["sound"]).encode(encoding))) == (False, False)


@pytest.mark.parametrize("length", [0, 1, 7, 2**31, 2**63, 2**64 - 1])
def test_a_length_that_is_not_the_headers_is_refused_as_by_the_library(length: int, tmp_path: Path) -> None:
    assert both(written(tmp_path, json.dumps(HEADERS["sound"]).encode(), length)) == (False, False)


@pytest.mark.parametrize("text", [b"[" * 50_000, b'{"a":' * 50_000, b'{"a\\ud800": 1}', b"", b"{}x", b"null"])
def test_what_is_no_header_is_refused_as_by_the_library(text: bytes, tmp_path: Path) -> None:
    assert both(written(tmp_path, text)) == (False, False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.to("meta"), "w has no data .device meta."),
        (lambda t: t.to_sparse(), "w is sparse"),
        (lambda t: t.to_sparse_csr(), "w is sparse"),
        (lambda t: t.new_zeros(1).expand(10**5, 10**4), "has only 4 bytes in the file"),
        (lambda t: {"inner": t}, "expected a mapping of names to tensors"),
        (lambda t: [1.0], "expected a mapping of names to tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_pickled_tensor_that_is_not_dense_is_one_line(
    change: Callable[[Tensor], Any], words: str, tmp_path: Path
) -> None:
    torch.save({"w": change(torch.ones(3, 4))}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=words) as caught:
        read_headers(tmp_path, "a")
    assert "\n" not in str(caught.value)


def test_a_pickled_tensor_with_a_gradient_is_read_without_it(tmp_path: Path) -> None:
    """The control, and what trainers write: parameters, views, and a transposed tensor."""
    made = {
        "p": torch.nn.Parameter(torch.ones(3, 4)),
        "v": torch.arange(24.0).reshape(4, 6).t(),
        "e": torch.arange(4.0)[None].expand(3, 4),
    }
    torch.save(made, tmp_path / "pytorch_model.bin")
    assert {name: t.shape for name, t in read_headers(tmp_path, "a").items()} == {"p": (3, 4), "v": (6, 4), "e": (3, 4)}
    read = load_pickle(tmp_path / "pytorch_model.bin")
    assert not read["p"].requires_grad
    assert all(torch.equal(read[name], value.detach()) for name, value in made.items())


# ---- files from before torch 1.6 ----


def legacy(folder: Path, tensors: dict[str, Tensor]) -> Path:
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    return path


def test_an_old_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every dtype; two tensors that share a storage count it once."""
    whole = torch.arange(100_000.0)
    made = {"a": whole, "b": whole[:50_000], "c": whole.view(2, -1).t()}
    made |= {str(dtype): torch.ones(1000, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.int64)}
    path = legacy(tmp_path, made)
    assert read_headers(tmp_path, "a").keys() == made.keys()
    read = load_pickle(path)
    assert all(torch.equal(read[name], value) for name, value in made.items())


@pytest.mark.parametrize("entries", [10**6, 2**31 - 1])
def test_an_old_file_that_states_more_than_it_holds_is_refused_before_torch_allocates(
    entries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of entries of a storage, the only integer of that size, is replaced; torch would allocate 4 bytes for each."""
    path = legacy(tmp_path, {"w": torch.ones(70_000)})
    content, number = path.read_bytes(), b"J" + struct.pack("<i", 70_000)
    assert content.count(number) >= 1
    path.write_bytes(content.replace(number, b"J" + struct.pack("<i", entries)))
    monkeypatch.setattr(torch, "load", None)  # not called
    with pytest.raises(CheckpointError, match=f"its tensors are {4 * entries:,} bytes, and the file holds"):
        read_headers(tmp_path, "a")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        b"\x80\x05\x96" + b"\xff" * 8,  # a byte array
        b"\x80\x02r\xff\xff\xff\xff.",  # the place of an object
        b"(X\x94\x07\xff\xff...",  # a text
    ],
)
def test_an_old_file_that_is_no_pickle_is_one_line(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader takes no more memory than the file; torch, which allocates what a length states, does not see it."""
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(CheckpointError, match="cannot be read as a weights-only PyTorch file") as caught:
        read_headers(tmp_path, "a")
    assert "\n" not in str(caught.value)


def test_the_size_of_an_old_file_is_read_without_loading_what_it_names(tmp_path: Path) -> None:
    """Loading runs what a pickle names; the reader of sizes calls nothing of it, and torch refuses it."""
    import pickle

    class Named:
        def __reduce__(self) -> Any:
            return (tmp_path / "ran").touch, ()

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Named()) * 4)
    with pytest.raises(CheckpointError, match="cannot be read as a weights-only PyTorch file"):
        read_headers(tmp_path, "a")
    assert not (tmp_path / "ran").exists()
