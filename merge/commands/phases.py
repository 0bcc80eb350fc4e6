"""Phases of a command on stderr: what it does now, how far it is and what is left; with -v what each phase took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from merge.machine import return_freed_memory

T = TypeVar("T")

# Seconds between two writings of a line, and before the first guess of the time that is left.
REDRAW, FIRST_GUESS = 0.1, 1.0
STARTING = "starting"


class Phases:
    """The phases of one command: shown as they run, and their CPU and wall seconds."""

    def __init__(self, shown: bool, reported: bool) -> None:
        """Begin with the phase before the first named one: the start of the process.

        Args:
            shown: whether progress is written to stderr.
            reported: whether `end` writes what each phase took.
        """
        self.shown, self.reported, self.terminal = shown, reported, sys.stderr.isatty()
        self.seconds: dict[str, tuple[float, float]] = {}
        self.name, self.since = STARTING, (0.0, time.monotonic() - time.process_time())
        self._line(f"{STARTING} ...")

    def begin(self, name: str) -> None:
        """End the current phase and begin another."""
        if name == self.name:
            return
        return_freed_memory()
        now = time.process_time(), time.monotonic()
        cpu, wall = self.seconds.get(self.name, (0.0, 0.0))
        self.seconds[self.name] = cpu + now[0] - self.since[0], wall + now[1] - self.since[1]
        self.name, self.since = name, now
        self._line(f"{name} ...")

    def counted(self, items: Sequence[T], label: str) -> Iterator[T]:
        """Iterate over items and show how many are done: in place on a terminal, else in one line at the end."""
        begun = drawn = time.monotonic()
        started, total = 0, len(items)
        try:
            for started, item in enumerate(items, start=1):
                now = time.monotonic()
                if self.terminal and (started == 1 or now - drawn > REDRAW):
                    drawn = now
                    self._line(f"{label}: {started}/{total}{_left(now - begun, started - 1, total)}")
                yield item
        finally:  # also when the loop ends early, so that later output starts on a new line
            count = f"{total} done" if started == total else f"stopped at {started} of {total}"
            self._print(f"{label}: {count} in {time.monotonic() - begun:.1f} s")

    def end(self) -> None:
        """End the last phase; write what each took, if that is asked for."""
        self.begin("")
        if self.shown and self.terminal:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
        if not self.reported:
            return
        whole = sum(cpu for cpu, _ in self.seconds.values()) or 1.0
        for name, (cpu, wall) in self.seconds.items():
            sys.stderr.write(f"phase {cpu:8.2f} CPU s {cpu / whole:5.1%} {wall:8.2f} s  {name}\n")
        try:
            import resource
        except ImportError:  # Windows
            return
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sys.stderr.write(f"peak memory {peak / 1e6:,.0f} MB, memory-mapped files included\n")

    def _line(self, text: str) -> None:
        """Write a line that the next one replaces; it never wraps, as wrapped lines pile up."""
        if self.shown and self.terminal:
            import shutil  # it reads archives too, and takes a fortieth of the time of --help

            sys.stderr.write(f"\r\033[K{shortened(text, shutil.get_terminal_size().columns - 1)}")
            sys.stderr.flush()

    def _print(self, text: str) -> None:
        if self.shown:
            start = "\r\033[K" if self.terminal else ""
            sys.stderr.write(f"{start}{text}\n")
            sys.stderr.flush()


def shortened(text: str, width: int) -> str:
    """Return a text of at most so many characters; what is cut out is in the middle, as its end says how far work is."""
    if len(text) <= width:
        return text
    if width < 8:
        return text[: max(width, 0)]
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def _left(elapsed: float, done: int, total: int) -> str:
    """Return the time that is left, guessed from what the items so far took; nothing in the first second."""
    if not done or elapsed < FIRST_GUESS:
        return ""
    seconds = round(elapsed / done * (total - done))
    return f", about {seconds} s left" if seconds < 120 else f", about {seconds / 60:.0f} min left"
