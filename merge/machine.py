"""What work takes of the machine: tasks in threads, memory that goes back to the system, and files that are mapped."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from contextvars import copy_context
from functools import cache
from typing import BinaryIO, TypeVar

from merge.progress import track

T = TypeVar("T")
R = TypeVar("R")

# Pieces of work at once, at most: each holds matrices of its own.
MAX_WORKERS = 4
LARGEST_KEPT_BYTES = 31 << 20
MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # Python 3.13 is the first to name it
OPEN_FILES = (65536, 10240)  # macOS allows no more than the second


def map_file(file: BinaryIO) -> mmap.mmap:
    """Return a file in memory; what is written to it stays in this process.

    Linux is told that the map is not written to: it would refuse a file that is larger than its memory.

    Raises:
        OSError, ValueError: it cannot be mapped, or is empty.
    """
    _allow_open_files()  # a map keeps its file open, and a model may have hundreds
    if sys.platform == "win32":
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | MAP_NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


@cache
def _allow_open_files() -> None:
    """Let this process have as many open files as the system allows, which is often many times what it gives at first."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in OPEN_FILES:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):
            if soft != resource.RLIM_INFINITY and wanted > soft:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return


def in_threads(tasks: Iterable[Callable[[], None]], threads: int, label: str) -> None:
    """Run tasks in threads, in the caller's context; the first error, or Ctrl-C, stops those not begun."""
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="merge") as pool:
        due: list[Future[None]] = [pool.submit(copy_context().run, task) for task in tasks]
        try:
            for _, done in zip(track(due, label), as_completed(due), strict=True):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def in_parallel(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return the function of each item, in their order, computed in threads that divide torch's threads among them.

    Many small operations on few threads waste them: a thread that has nothing to do waits in a loop. With one thread, or one
    item, items are computed in turn. inference_mode is a thread's own: the function enters it.
    """
    import torch

    threads = torch.get_num_threads()
    count = min(threads, MAX_WORKERS, len(items))
    if count < 2:
        return [function(item) for item in items]
    torch.set_num_threads(threads // count)
    try:
        with ThreadPoolExecutor(count, thread_name_prefix="merge") as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)


def return_freed_memory() -> None:
    """Give what was freed back to the system: the C library keeps it for later, and it would add to the next phase's peak."""
    with suppress(OSError, AttributeError, TypeError):  # not that of every system can
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for arrays that come and go: new memory costs as much as filling it.

    It gives back what is free beyond twice the largest block that was ever freed, of those up to 32 MB. This one is never filled.
    """
    bytearray(LARGEST_KEPT_BYTES)
