"""Weight files reach the disk while they are written, and a disk that fails on the way is an error."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from merge.checkpoints.weights import write
from merge.checkpoints.weights.write import WeightFile

CONTENT = bytes(range(256)) * 40


def written(path: Path) -> str:
    file = WeightFile(path)
    try:
        file.resize(len(CONTENT))
        for start in range(0, len(CONTENT), 1000):
            file.write(memoryview(CONTENT[start : start + 1000]), start)
        return file.finish()
    finally:
        file.close()


@pytest.mark.parametrize(("step", "least"), [(1 << 28, 1), (1, 2)])
def test_a_file_is_flushed_on_the_way_and_at_the_end(
    step: int, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes: list[int] = []
    monkeypatch.setattr(write, "FLUSH_BYTES", step)
    monkeypatch.setattr(os, "fsync", flushes.append)
    assert written(tmp_path / "weights") == hashlib.sha256(CONTENT).hexdigest()
    assert (tmp_path / "weights").read_bytes() == CONTENT
    assert least <= len(flushes) <= (1 if step > len(CONTENT) else 12)


def test_a_flush_that_fails_on_the_way_is_the_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:  # that of the hashing thread or, should it be late, the last one
            raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(write, "FLUSH_BYTES", 1)
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="no space"):
        written(tmp_path / "weights")
