"""A disk that fails once: the n-th open, read, write, flush, rename or copy of files in one folder raises an error."""

from __future__ import annotations

import builtins
import errno
import io
import mmap
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.numpy
import safetensors.torch

ERRORS = (errno.ENOSPC, errno.EIO, errno.EINTR)


class FaultyDisk:
    """Counts the operations on files below `folder`, and fails the one whose number is `fails_at`.

    Attributes:
        counts: kind of operation -> how many there were.
    """

    def __init__(self, folder: Path, fails_at: int = 0, number: int = errno.EIO) -> None:
        self.folder = str(folder)
        self.fails_at = fails_at
        self.number = number
        self.counts: Counter[str] = Counter()
        self.failed = ""
        self._lock = threading.Lock()

    def step(self, kind: str, path: Any) -> None:
        """Count one operation; raise the error if it is its turn."""
        with self._lock:
            self.counts[kind] += 1
            if sum(self.counts.values()) != self.fails_at:
                return
            self.failed = f"{kind} {path}"
        raise OSError(self.number, os.strerror(self.number), str(path))

    def concerns(self, path: Any) -> bool:
        """Return whether a path is in the folder; relative ones are, as the tests run there."""
        if isinstance(path, int):
            return False
        text = os.fsdecode(path)
        return text.startswith(self.folder) or not text.startswith("/")


class FaultyFile:
    """An open file whose reads and writes are counted."""

    def __init__(self, file: Any, disk: FaultyDisk, path: Any) -> None:
        self.__dict__.update(_file=file, _disk=disk, _path=path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> FaultyFile:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def __iter__(self) -> Iterator[Any]:
        self._disk.step("read", self._path)
        return iter(self._file)

    def read(self, *size: Any) -> Any:
        self._disk.step("read", self._path)
        return self._file.read(*size)

    def readinto(self, target: Any) -> Any:
        self._disk.step("read", self._path)
        return self._file.readinto(target)

    def write(self, data: Any) -> Any:
        self._disk.step("write", self._path)
        return self._file.write(data)

    def flush(self) -> None:
        self._disk.step("write", self._path)
        self._file.flush()


@contextmanager
def failing(disk: FaultyDisk) -> Iterator[FaultyDisk]:
    """Let all operations of this process on files in the disk's folder go through it."""
    paths: dict[int, Any] = {}

    def opened(real: Callable[..., Any]) -> Callable[..., Any]:
        def open_file(path: Any, *args: Any, **options: Any) -> Any:
            if not disk.concerns(path):
                return real(path, *args, **options)
            disk.step("open", path)
            return FaultyFile(real(path, *args, **options), disk, path)

        return open_file

    def descriptor(path: Any, *args: Any, **options: Any) -> int:
        if disk.concerns(path):
            disk.step("open", path)
        number = real_os_open(path, *args, **options)
        paths[number] = path
        return number

    def of_path(kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            if disk.concerns(path):
                disk.step(kind, path)
            return real(path, *args, **options)

        return call

    def of_descriptor(kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(number: Any, *args: Any) -> Any:
            if kind == "fsync" or disk.concerns(paths.get(number, "/")):
                disk.step(kind, paths.get(number, number))
            return real(number, *args)

        return call

    def mapped(number: int, *args: Any, **options: Any) -> Any:
        disk.step("read", number)
        return real_mmap(number, *args, **options)

    real_os_open, real_mmap = os.open, mmap.mmap
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", opened(builtins.open))
        patch.setattr(io, "open", opened(io.open))
        patch.setattr(os, "open", descriptor)
        for name, kind in (("fsync", "fsync"), ("write", "write"), ("read", "read")):
            patch.setattr(os, name, of_descriptor(kind, getattr(os, name)))
        for name in ("rename", "replace", "mkdir"):
            patch.setattr(os, name, of_path("rename" if name != "mkdir" else "open", getattr(os, name)))
        patch.setattr(shutil, "copyfile", of_path("write", shutil.copyfile))
        patch.setattr(mmap, "mmap", mapped)
        patch.setattr(safetensors, "safe_open", of_path("open", safetensors.safe_open))
        patch.setattr(safetensors.torch, "save_file", _saving(disk, safetensors.torch.save_file))
        patch.setattr(safetensors.torch, "load_file", of_path("read", safetensors.torch.load_file))
        yield disk


def _saving(disk: FaultyDisk, real: Callable[..., Any]) -> Callable[..., Any]:
    def save(tensors: Any, path: Any, *args: Any, **options: Any) -> Any:
        if disk.concerns(path):
            disk.step("write", path)
        return real(tensors, path, *args, **options)

    return save
