"""Tasks in threads, and memory that is kept and given back."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TypeVar

import pytest
import torch

from merge.machine import in_parallel, in_threads, keep_freed_memory, return_freed_memory
from merge.progress import shown_by, track

T = TypeVar("T")


def test_threads_of_a_loop_show_to_the_same_display() -> None:
    """A context variable is not seen in threads by itself: `in_threads` hands the context on."""
    labels, done = list[str](), list[int]()

    def display(items: Sequence[T], label: str) -> Iterable[T]:
        labels.append(label)
        return items

    def task(number: int) -> None:
        done.extend(track([number], f"task {number}"))

    with shown_by(display):
        in_threads([partial(task, number) for number in range(4)], 2, "tasks")
    assert sorted(done) == [0, 1, 2, 3]
    assert sorted(labels) == ["task 0", "task 1", "task 2", "task 3", "tasks"]


def test_work_in_parallel_divides_the_threads_of_torch_and_gives_them_back() -> None:
    """Four threads for two items are two each; one item keeps all; an error goes to the caller, and the number is as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert in_parallel(lambda item: (item, torch.get_num_threads()), ["a", "b"]) == [("a", 2), ("b", 2)]
        assert in_parallel(lambda item: torch.get_num_threads(), ["a"]) == [4]
        assert in_parallel(lambda item: item, []) == []
        with pytest.raises(ZeroDivisionError):
            in_parallel(lambda item: 1 // item, [1, 0])
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def faults_of(rounds: int, size: int) -> int:
    """Return how many pages the system hands out while three blocks at a time are filled and freed."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        alive = [torch.ones(size, dtype=torch.uint8) for _ in range(3)]
        alive.clear()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library frees by other rules")
def test_kept_memory_is_filled_again_and_is_given_back_when_asked() -> None:
    """Of ten rounds of 24 MB, fewer pages than one round fills; and once more after the memory was returned."""
    size = 8 << 20
    pages = size // 4096
    keep_freed_memory()
    faults_of(4, size)  # where the heap grows
    assert faults_of(10, size) < 3 * pages
    return_freed_memory()
    assert faults_of(1, size) > pages
