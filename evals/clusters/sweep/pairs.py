"""The pairs of a sweep, and their order in blocks, so that a worker reads each model as few times as possible.

The models are parted into groups of g. A block holds the pairs between two groups (or inside one) and reads each of its models
once: at most 2 g models for g^2 pairs. All N (N - 1) / 2 pairs of n = ceil(N / g) groups take at most n N <= N^2 / g + N reads,
instead of N (N - 1) where each pair reads its two. A worker holds the g models of a group, the two last of the other group, and
the model that runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

from evals.clusters.pair_losses import Pair

# Models in a group at most: more save few reads (2 / g of a model a pair) and take memory.
MOST_IN_GROUP = 4
# Blocks for each process at least, where there are as many pairs: the last one to end is then short.
BLOCKS_EACH = 4

Block = tuple[Pair, ...]


def all_pairs(count: int) -> list[Pair]:
    """Return every pair of models by their index, the smaller first."""
    return list(combinations(range(count), 2))


def reference_pairs(count: int, references: Iterable[int]) -> list[Pair]:
    """Return the pairs of every model with each reference."""
    chosen = set(references)
    return [(i, j) for i, j in all_pairs(count) if i in chosen or j in chosen]


def group_size(pairs: int, processes: int) -> int:
    """Return how many models a group has, so that every process gets several blocks where there are enough pairs."""
    return max(1, min(MOST_IN_GROUP, math.isqrt(pairs // (BLOCKS_EACH * max(processes, 1)))))


def blocks(pairs: Sequence[Pair], size: int) -> list[Block]:
    """Return the pairs in blocks of two groups of `size` models, each pair once; inside a block by the first model."""
    parted: dict[Pair, list[Pair]] = {}
    for i, j in sorted(pairs):
        parted.setdefault((i // size, j // size), []).append((i, j))
    return [tuple(parted[groups]) for groups in sorted(parted)]


def held(size: int) -> int:
    """Return how many models a worker keeps while it measures a block: a group, and the last two of the other one."""
    return size + 2


def reads(parted: Sequence[Block]) -> int:
    """Return how many times models are read: each model of a block once."""
    return sum(len({model for pair in block for model in pair}) for block in parted)
