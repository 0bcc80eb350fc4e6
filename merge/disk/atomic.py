"""Atomic files: a file is written whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield the path of an empty temporary file beside `path`, which takes its place if the block succeeds.

    Readers see the old file or the new one, never a part. On any error, Ctrl-C included, the temporary file is removed and
    the old one stays. A killed process leaves `.NAME.PROCESS-THREAD.tmp` behind.

    Args:
        sync: flush the file to the disk before it takes its place, so that a power cut leaves no empty file; needless for
            what can be made again.
    Raises:
        OSError: the disk is full, or the folder is missing or not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors.save_file makes files that only their owner may read
        if sync:
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):  # it took its place, or there is no such folder
            temporary.unlink()


def write_atomic(path: Path, content: bytes | str, sync: bool = True) -> None:
    """Write a file whole or not at all; text as UTF-8, its line ends as they are.

    Raises:
        OSError: the disk is full, or the folder is missing or not writable.
    """
    with replacing(path, sync) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
