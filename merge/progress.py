"""Progress of long loops, handed in by the command; silent by default."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Goes through the items and shows how far it is."""

    def __call__(self, items: Sequence[T], label: str) -> Iterable[T]: ...


def silent(items: Sequence[T], label: str) -> Iterable[T]:
    """Show nothing."""
    return items
