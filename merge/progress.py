"""Progress of long work, shown by whoever sets a display (a command); nothing is shown by default.

Work is a sequence of phases, each with a name; inside a phase loops say how far they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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
