"""Hashes are the file's own, and are remembered only while nothing can have changed it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

import merge.disk.hashes
from merge.disk.hashes import file_hash, remembered_hash


@pytest.fixture
def readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Count how often files are read, with an empty cache and a clock that lets files settle at once."""
    monkeypatch.setenv("MERGE_MODELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(merge.disk.hashes, "SETTLED_NS", -1)
    seen: list[Path] = []

    def counted(path: Path) -> str:
        seen.append(path)
        return file_hash(path)

    monkeypatch.setattr(merge.disk.hashes, "file_hash", counted)
    return seen


@pytest.mark.parametrize("size", [0, 1, 4096, 1_000_003])
def test_the_hash_is_sha256_of_the_bytes(size: int, tmp_path: Path) -> None:
    data = bytes(i % 251 for i in range(size))
    (tmp_path / "f").write_bytes(data)
    assert file_hash(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_a_file_that_stays_as_it_is_is_read_once(tmp_path: Path, readings: list[Path]) -> None:
    (tmp_path / "f").write_bytes(b"one")
    first = remembered_hash(tmp_path / "f")
    assert remembered_hash(tmp_path / "f") == first == hashlib.sha256(b"one").hexdigest()
    assert len(readings) == 1


def test_a_change_of_the_same_size_with_its_time_set_back_is_seen(tmp_path: Path, readings: list[Path]) -> None:
    """The modification time can be set by anyone; the time of the inode's change cannot."""
    path = tmp_path / "f"
    path.write_bytes(b"one")
    before = path.stat()
    remembered_hash(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert remembered_hash(path) == hashlib.sha256(b"two").hexdigest()
    assert len(readings) == 2


def test_another_file_under_the_same_name_is_seen(tmp_path: Path, readings: list[Path]) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one")
    remembered_hash(path)
    (tmp_path / "g").write_bytes(b"two")
    (tmp_path / "g").replace(path)
    assert remembered_hash(path) == hashlib.sha256(b"two").hexdigest()


def test_a_file_just_written_is_not_remembered(
    tmp_path: Path, readings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change again within the same tick of the file system's clock."""
    monkeypatch.setattr(merge.disk.hashes, "SETTLED_NS", 10**12)
    (tmp_path / "f").write_bytes(b"one")
    remembered_hash(tmp_path / "f")
    remembered_hash(tmp_path / "f")
    assert len(readings) == 2


def test_a_damaged_memory_is_no_answer(tmp_path: Path, readings: list[Path]) -> None:
    (tmp_path / "f").write_bytes(b"one")
    first = remembered_hash(tmp_path / "f")
    for cached in (tmp_path / "cache").rglob("*.json"):
        cached.write_text('"short"', encoding="utf-8")
    assert remembered_hash(tmp_path / "f") == first
    assert len(readings) == 2
