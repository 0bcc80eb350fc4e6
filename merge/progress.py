"""Progress of long work, shown by whoever sets a display (a command); nothing is shown by default. Tasks in threads.

Work is a sequence of phases, each with a name; inside a phase loops say how far they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Pieces of work at once, at most: each holds matrices of its own.
MAX_WORKERS = 4
LARGEST_KEPT_BYTES = 31 << 20


class Display(Protocol):
    """Goes through the items of a loop and shows how many are done."""

    def __call__(self, items: Sequence[T], label: str) -> Iterable[T]: ...


def silent(items: Sequence[T], label: str) -> Iterable[T]:
    """Show nothing."""
    return items


# A context variable: what is shown is no part of what a function computes, and no function has to hand it on.
_DISPLAY: ContextVar[Display] = ContextVar("progress display", default=silent)


def track(items: Sequence[T], label: str) -> Iterable[T]:
    """Go through the items of a long loop; the display that is set shows how many are done."""
    return _DISPLAY.get()(items, label)


def begin_phase(name: str) -> None:
    """Say that a phase of the work begins, and with it that the one before has ended; phases of one name are one."""
    _BEGIN.get()(name)


def _not_shown(name: str) -> None:
    return


_BEGIN: ContextVar[Callable[[str], None]] = ContextVar("begin of a phase", default=_not_shown)


@contextmanager
def shown_by(display: Display, begin: Callable[[str], None] = _not_shown) -> Iterator[None]:
    """Set the display of all loops inside, in the threads of `in_threads` too, and what is called as a phase begins."""
    tokens = _DISPLAY.set(display), _BEGIN.set(begin)
    try:
        yield
    finally:
        _DISPLAY.reset(tokens[0])
        _BEGIN.reset(tokens[1])


def return_freed_memory() -> None:
    """Give what was freed back to the system: the C library keeps it for later, and it would add to the next phase's peak."""
    with suppress(OSError, AttributeError, TypeError):  # not that of every system can
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for arrays that come and go: new memory costs as much as filling it.

    It gives back what is free beyond twice the largest block that was ever freed, of those up to 32 MB. This one is never filled.
    """
    bytearray(LARGEST_KEPT_BYTES)


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
