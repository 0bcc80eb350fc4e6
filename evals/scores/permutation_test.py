"""Permutation tests whose number of permutations follows from the precision that the p-value is to have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np
from jaxtyping import Float64

# All permutations are tried where there are no more.
MOST_EXACT = 50_000
# A p-value has a standard error of at most a tenth of it, or of 1e-4.
RELATIVE, ABSOLUTE = 0.1, 1e-4
MOST_DRAWN = 2**20
BATCH_NUMBERS = 4_000_000  # permuted at a time, 32 MB


@dataclass(frozen=True)
class PermutationTest:
    """A statistic and how unusual it is.

    Attributes:
        value: of the statistic.
        p: two-sided: twice the smaller share of permutations whose statistic is as low, or as high; at most 1.
        permutations: that were tried.
        exact: whether these are all; else p counts the data as one of them.
    """

    value: float
    p: float
    permutations: int
    exact: bool

    def to_json(self) -> dict[str, Any]:
        """Return the record of the analysis."""
        return asdict(self)


def correlation_test(x: Any, y: Any, generator: np.random.Generator) -> PermutationTest | None:
    """Return the Pearson correlation of x and y, and its p-value; None where one is constant, or for fewer than 3.

    Of ranks it is the Spearman correlation. With x of 0 and 1, the p-value is that of the difference of means.

    Args:
        x, y: shape (n,).
    """
    x, y = (np.asarray(each, dtype=np.float64) for each in (x, y))
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    a, b = (each - each.mean() for each in (x, y))
    value = float(np.clip(a @ b / math.sqrt((a @ a) * (b @ b)), -1, 1))
    p, count, exact = _p_value(a, b, generator)
    return PermutationTest(value, p, count, exact)


def ranks(values: Any) -> Float64[np.ndarray, " n"]:
    """Return ranks from 1 on, equal values with the mean of theirs."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values), dtype=np.float64)


def _p_value(a: Any, b: Any, generator: np.random.Generator) -> tuple[float, int, bool]:
    """Return (p, permutations, whether these are all) of the sum of a b under permutations of b."""
    observed = float(a @ b)
    slack = 1e-12 * math.sqrt(float((a @ a) * (b @ b)))
    every = _every(a, b)
    if every is not None:
        return _two_sided(*_tails(every, observed, slack), len(every), 0), len(every), True
    low = high = drawn = 0
    target = 1000
    while True:
        for size in _batches(target - drawn, len(b)):
            sums = generator.permuted(np.broadcast_to(b, (size, len(b))), axis=1) @ a
            below, above = _tails(sums, observed, slack)
            low, high, drawn = low + below, high + above, drawn + size
        p = _two_sided(low, high, drawn, 1)
        error = math.sqrt(p * (1 - p) / drawn)
        if error <= max(RELATIVE * p, ABSOLUTE) or drawn >= MOST_DRAWN:
            return p, drawn, False
        target = min(MOST_DRAWN, 4 * drawn)


def _every(a: Any, b: Any) -> Any:
    """Return the sum for every permutation, or for every choice where a has two values; None where these are too many."""
    values, counts = np.unique(a, return_counts=True)
    if len(values) == 2:
        if math.comb(len(a), int(counts[0])) > MOST_EXACT:
            return None
        chosen = np.array(list(combinations(range(len(a)), int(counts[0]))))
        inside = b[chosen].sum(1)
        return values[0] * inside + values[1] * (b.sum() - inside)
    if math.factorial(len(a)) > MOST_EXACT:
        return None
    return b[np.array(list(permutations(range(len(a)))))] @ a


def _tails(sums: Any, observed: float, slack: float) -> tuple[int, int]:
    """Return how many sums are as low, and as high; equal ones differ by rounding."""
    return int((sums <= observed + slack).sum()), int((sums >= observed - slack).sum())


def _two_sided(low: int, high: int, count: int, data: int) -> float:
    return min(1.0, 2 * (min(low, high) + data) / (count + data))


def _batches(count: int, length: int) -> Iterator[int]:
    step = max(1, BATCH_NUMBERS // length)
    for done in range(0, count, step):
        yield min(step, count - done)
