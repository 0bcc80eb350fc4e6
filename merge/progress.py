"""Progress of long loops, handed in by the command; silent by default. Tasks in threads, which show theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextvars import copy_context
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Goes through the items and shows how far it is."""

    def __call__(self, items: Sequence[T], label: str) -> Iterable[T]: ...


def silent(items: Sequence[T], label: str) -> Iterable[T]:
    """Show nothing."""
    return items


def in_threads(tasks: Iterable[Callable[[], None]], threads: int, progress: Progress, title: str) -> None:
    """Run tasks in threads, in the caller's context; the first error, or Ctrl-C, stops those not begun."""
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="merge") as pool:
        due: list[Future[None]] = [pool.submit(copy_context().run, task) for task in tasks]
        try:
            for _, done in zip(progress(due, title), as_completed(due), strict=True):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
