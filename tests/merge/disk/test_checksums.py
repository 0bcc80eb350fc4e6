"""Checksums: a JSON object comes back as it was written, and any change of it is seen."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch

from merge.disk import checksums
from merge.disk.checksums import CHECKSUM, tensors_checksum, with_checksum, without_checksum

RECORD: dict[str, Any] = {
    "key": "k",
    "values": [0.1, 1e-300, None, 2**70],
    "name": "é\u2028",
    "inner": {"b": 1, "a": [True]},
}


def read_back(value: Any) -> Any:
    return json.loads(json.dumps(value, indent=1, ensure_ascii=False))


def test_an_object_comes_back_whatever_the_order_of_its_keys() -> None:
    stored = read_back(with_checksum(RECORD))
    assert without_checksum(stored) == RECORD
    assert without_checksum(dict(reversed(stored.items()))) == RECORD
    assert with_checksum(stored) == stored


@pytest.mark.parametrize(
    "change",
    [
        {"key": "l"}, {"values": [0.1, 1e-300, None]}, {"values": [0.1, 0.0, None, 2**70]}, {"inner": {"b": 1, "a": [1]}},
        {"further": 1}, {CHECKSUM: None}, {CHECKSUM: ["x"]}, {CHECKSUM: "0" * 64},
    ],
)  # fmt: skip
def test_any_change_is_seen(change: dict[str, Any]) -> None:
    assert without_checksum({**with_checksum(RECORD), **change}) is None


@pytest.mark.parametrize("value", [None, [], "x", 1, {}, RECORD])
def test_what_has_no_checksum_is_not_as_written(value: Any) -> None:
    assert without_checksum(value) is None


def test_a_file_of_another_layout_is_older(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = with_checksum(RECORD)
    monkeypatch.setattr(checksums, "LAYOUT", checksums.LAYOUT + 1)
    assert without_checksum(stored) is None


def test_tensors_of_every_dtype_have_a_checksum_of_their_bytes() -> None:
    """Numpy has no bfloat16 and no float8; for what it has, the sum is of the bytes that it gives."""
    values = torch.tensor([[1.0, -2.0], [0.5, 8.0]])
    dtypes = (torch.bfloat16, torch.float8_e4m3fn, torch.float32, torch.bool, torch.int64)
    sums = [tensors_checksum({"w": values.to(dtype)}) for dtype in dtypes]
    assert len(set(sums)) == len(dtypes)
    plain = hashlib.sha256(b"w torch.float32 (2, 2)\n" + values.numpy().tobytes()).digest()
    assert sums[2] == plain
    assert tensors_checksum({"w": values.T.contiguous().T}) == plain  # the same rows, stored by columns
    assert tensors_checksum({"w": torch.tensor(3.0)}) != tensors_checksum({"w": torch.tensor(4.0)})
