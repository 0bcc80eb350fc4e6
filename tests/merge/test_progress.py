"""The display of long loops: set in one place, seen everywhere inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from merge.progress import shown_by, track

T = TypeVar("T")


class Counting:
    """A display that keeps the labels of the loops it showed."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def __call__(self, items: Sequence[T], label: str) -> Iterable[T]:
        self.labels.append(label)
        return items


def test_a_display_shows_the_loops_inside_and_no_others() -> None:
    """Before and after, nothing is shown; the inner of two displays hides the outer."""
    outer, inner = Counting(), Counting()
    assert list(track([1, 2], "before")) == [1, 2]
    with shown_by(outer):
        assert list(track([1, 2], "first")) == [1, 2]
        with shown_by(inner):
            list(track([3], "second"))
        list(track([4], "third"))
    list(track([5], "after"))
    assert (outer.labels, inner.labels) == (["first", "third"], ["second"])
