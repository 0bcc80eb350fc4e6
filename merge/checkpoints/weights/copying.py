"""Copy a range of bytes from one file to another inside the kernel where the system can, else block by block."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from io import FileIO

# Copied at a time, so that what follows the copy (its hash) need not wait for all of it.
STEP_BYTES = 1 << 24
# What a system answers that, or whose file system, has no such call: the next way is taken.
UNSUPPORTED = {
    getattr(errno, name)
    for name in ("EXDEV", "ENOSYS", "EINVAL", "EOPNOTSUPP", "ENOTSUP", "EPERM", "EBADF", "ETXTBSY", "ENOTSOCK")
    if hasattr(errno, name)
}


def copy_range(source: FileIO, start: int, target: FileIO, offset: int, size: int) -> Iterator[int]:
    """Copy `size` bytes of a file from `start` on to another at `offset`; yield the length of each piece once it is there.

    A file system that shares blocks between files (btrfs, xfs) copies nothing at all.

    Raises:
        OSError: the disk is full, or the source is shorter.
    """
    ways = [_share, _send, _read_and_write]
    while size:
        step = min(size, STEP_BYTES)
        try:
            moved = ways[0](source, start, target, offset, step)
        except OSError as error:
            if len(ways) == 1 or error.errno not in UNSUPPORTED:
                raise
            moved = 0
        if moved == 0 and len(ways) > 1:
            del ways[0]
            continue
        if moved == 0:
            raise OSError(f"{source.name!r} is shorter than its header says")
        yield moved
        start, offset, size = start + moved, offset + moved, size - moved


def _share(source: FileIO, start: int, target: FileIO, offset: int, size: int) -> int:
    """Linux: bytes go from file to file, or blocks are shared; 0 where there is no such call."""
    call = getattr(os, "copy_file_range", None)
    return 0 if call is None else int(call(source.fileno(), target.fileno(), size, start, offset))


def _send(source: FileIO, start: int, target: FileIO, offset: int, size: int) -> int:
    """Linux and some others; elsewhere sendfile writes to sockets alone, or is absent."""
    call = getattr(os, "sendfile", None)
    if call is None:
        return 0
    target.seek(offset)
    return int(call(target.fileno(), source.fileno(), start, size))


def _read_and_write(source: FileIO, start: int, target: FileIO, offset: int, size: int) -> int:
    source.seek(start)
    data = memoryview(source.read(min(size, 1 << 22)))
    target.seek(offset)
    written = 0
    while written < len(data):
        written += target.write(data[written:]) or 0
    return written
