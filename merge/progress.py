"""Progress of long loops, shown by whoever sets a display (a command); nothing is shown by default. Tasks in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Protocol, TypeVar

T = TypeVar("T")


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


@contextmanager
def shown_by(display: Display) -> Iterator[None]:
    """Set the display of all loops inside, in the threads of `in_threads` too."""
    token = _DISPLAY.set(display)
    try:
        yield
    finally:
        _DISPLAY.reset(token)


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
