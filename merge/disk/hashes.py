"""SHA-256 of files, remembered while they do not change: what a merge states of its inputs and outputs."""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from pathlib import Path

from merge.disk.cache import cache_key, read_cached, write_cached

# A file that changed less than this before it was hashed may change again within the same tick of its file system's
# clock, and nothing would show it; its hash is not remembered.
SETTLED_NS = 2_000_000_000


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return hashlib.sha256().hexdigest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            # One call for all of it: it holds no lock of the interpreter, so other threads run on meanwhile.
            return hashlib.sha256(data).hexdigest()


def remembered_hash(path: Path) -> str:
    """Return `file_hash`, without reading the file where its identity, size and times say that it is unchanged.

    The time of the last change of the inode is among them, which no ordinary program can set.
    """
    found = path.stat()
    stamp = [str(path.resolve()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    key = cache_key(*stamp)
    known = read_cached("hashes", key)
    if isinstance(known, str) and len(known) == 64:
        return known
    begun = time.time_ns()
    digest = file_hash(path)
    after = path.stat()
    # Windows keeps the time of creation as ctime.
    changed = max(found.st_mtime_ns, found.st_ctime_ns)
    if (after.st_mtime_ns, after.st_ctime_ns) == (found.st_mtime_ns, found.st_ctime_ns) and (
        begun - changed > SETTLED_NS
    ):
        write_cached("hashes", key, digest)
    return digest
