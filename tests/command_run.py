"""Runs a command in this process as it is typed: its exit code, and what it printed."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

Run = Callable[..., tuple[int, str, str]]


@contextmanager
def command_run(
    name: str, main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Yield a function from words to (exit code, stdout, stderr); what a command sets in its process is set back at the end."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    handler, level = signal.getsignal(signal.SIGTERM), logging.getLogger().level
    yield run
    signal.signal(signal.SIGTERM, handler)
    logging.getLogger().setLevel(level)
