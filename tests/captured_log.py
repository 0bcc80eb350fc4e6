"""The log messages of a test."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class CapturedLog(logging.Handler):
    """What reaches the root logger while a test runs.

    It stands in for the plugin of pytest, which before each of the three phases of every test hands handlers to all loggers
    that it looks for among thousands: transformers has one for each model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of a message."""
        self.messages.append(record.getMessage())

    @contextmanager
    def at_level(self, level: int, logger: str | None = None) -> Iterator[None]:
        """Let a logger, by default the root, pass messages of this level on until the end of the block."""
        changed = logging.getLogger(logger)
        before = changed.level
        changed.setLevel(level)
        try:
            yield
        finally:
            changed.setLevel(before)
