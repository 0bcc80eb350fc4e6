"""Blocks of pairs: each pair once, and each model read as often as the bound says."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict

import pytest

from evals.clusters.sweep.pairs import (
    BLOCKS_EACH,
    MOST_IN_GROUP,
    all_pairs,
    blocks,
    group_size,
    held,
    reads,
    reference_pairs,
)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [2, 5, 8, 13])
def test_blocks_hold_each_pair_once_and_read_no_more_than_the_bound(count: int, size: int) -> None:
    """The bound is exact but for diagonal blocks of one model, which have no pair; N (N - 1) is what single pairs read."""
    pairs = all_pairs(count)
    assert len(pairs) == count * (count - 1) // 2
    parted = blocks(pairs, size)
    assert Counter(pair for block in parted for pair in block) == Counter(pairs)
    alone = 1 if count % size == 1 or size == 1 else 0  # models that are a group of their own
    groups_of_one = count if size == 1 else alone
    assert reads(parted) == math.ceil(count / size) * count - groups_of_one
    assert reads(blocks(pairs, 1)) == count * (count - 1)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_worker_that_holds_so_many_models_reads_each_of_a_block_once(size: int) -> None:
    """An independent count: a cache of the least recently used, walked pair by pair; one place less reads more (control)."""

    def misses(places: int) -> int:
        cache: OrderedDict[int, None] = OrderedDict()
        count = 0
        for block in blocks(all_pairs(12), size):
            cache.clear()
            for pair in block:
                for model in pair:
                    count += model not in cache
                    cache[model] = None
                    cache.move_to_end(model)
                    if len(cache) > places:
                        cache.popitem(last=False)
        return count

    assert misses(held(size)) == reads(blocks(all_pairs(12), size))
    if size > 1:
        assert misses(held(size) - 1) > misses(held(size))


def test_references_are_paired_with_every_model() -> None:
    assert reference_pairs(4, [2]) == [(0, 2), (1, 2), (2, 3)]
    assert reference_pairs(4, [0, 2]) == [(0, 1), (0, 2), (0, 3), (1, 2), (2, 3)]


def test_groups_leave_every_process_several_blocks() -> None:
    assert group_size(28, 2) == 1
    for pairs, processes in ((4950, 8), (300, 2), (10, 4)):
        size = group_size(pairs, processes)
        assert 1 <= size <= MOST_IN_GROUP
        assert size == 1 or pairs / size**2 >= BLOCKS_EACH * processes
