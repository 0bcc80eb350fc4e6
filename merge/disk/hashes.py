"""SHA-256 of files, cached while they do not change."""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from pathlib import Path

from merge.disk.cache import cache_key, read_cached, write_cached
from merge.disk.documents import check_regular

# A file that changed less than this before it was hashed may change again within the same tick of its file system's
# clock, and nothing would show it; its hash is not remembered.
SETTLED_NS = 2_000_000_000


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    check_regular(path)
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return hashlib.sha256().hexdigest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            # One call for all of it, which releases the interpreter's lock: other threads run meanwhile.
            return hashlib.sha256(data).hexdigest()


def remembered_hash(path: Path) -> str:
    """Return `file_hash` from the cache where path, inode, size and times of the file are those it was cached under.

    One of the times is that of the last change of the inode, which no ordinary program can set.
    """
    before = path.stat()
    stamp = [str(path.resolve()), before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns]
    key = cache_key(*stamp)
    cached = read_cached("hashes", key)
    if isinstance(cached, str) and len(cached) == 64:
        return cached
    begun = time.time_ns()
    digest = file_hash(path)
    after = path.stat()
    # Windows keeps the time of creation as ctime.
    changed = max(before.st_mtime_ns, before.st_ctime_ns)
    if (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns) and (
        begun - changed > SETTLED_NS
    ):
        write_cached("hashes", key, digest)
    return digest
