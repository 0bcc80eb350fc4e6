"""Bytes copied from file to file are the bytes that were there, whichever way the system offers."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from merge.checkpoints.weights import copying
from merge.checkpoints.weights.copying import copy_range

CONTENT = bytes(range(256)) * 40


def refusing(*_: Any, **__: Any) -> int:
    raise OSError(errno.EXDEV, "two file systems")


def full(*_: Any, **__: Any) -> int:
    raise OSError(errno.ENOSPC, "no space")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(CONTENT)
    (tmp_path / "target").write_bytes(b"x" * 12_000)
    return tmp_path


def copied(place: Path, start: int, offset: int, size: int) -> bytes:
    with (
        (place / "source").open("rb", buffering=0) as source,
        (place / "target").open("r+b", buffering=0) as target,
    ):
        assert sum(copy_range(source, start, target, offset, size)) == size
    return (place / "target").read_bytes()


@pytest.mark.parametrize("step", [1 << 24, 1000])
@pytest.mark.parametrize(
    "missing", [(), ("copy_file_range",), ("copy_file_range", "sendfile"), ("refused",)], ids="-".join
)
def test_a_range_lands_at_its_offset_and_the_rest_stays(
    missing: tuple[str, ...], step: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "STEP_BYTES", step)
    for name in ("copy_file_range", "sendfile"):
        if name in missing:
            monkeypatch.delattr(os, name, raising=False)
        elif missing == ("refused",):
            monkeypatch.setattr(os, name, refusing, raising=False)
    assert copied(place, 100, 33, 9_000) == b"x" * 33 + CONTENT[100:9_100] + b"x" * (12_000 - 9_033)
    assert copied(place, 0, 5, 0) == b"x" * 33 + CONTENT[100:9_100] + b"x" * (12_000 - 9_033)


def test_a_source_that_is_too_short_and_a_full_disk_are_errors(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="shorter than its header says"):
        copied(place, len(CONTENT) - 10, 0, 11)
    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    with pytest.raises(OSError, match="no space"):
        copied(place, 0, 0, 10)
