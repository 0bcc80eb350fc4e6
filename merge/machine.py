"""What work takes of the machine: tasks in threads, and memory that goes back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from contextvars import copy_context
from typing import TypeVar

from merge.progress import track

T = TypeVar("T")
R = TypeVar("R")

# Pieces of work at once, at most: each holds matrices of its own.
MAX_WORKERS = 4
LARGEST_KEPT_BYTES = 31 << 20


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
