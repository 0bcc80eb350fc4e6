"""The k-th largest magnitude of a whole model, exactly, without holding or sorting the model.

A sample brackets it, one pass counts the entries above the bracket and collects those inside, and these are ranked. Where the
bracket misses it, as among many equal magnitudes, it is computed digit by digit: the bits of a non-negative float, read as an
integer, are ordered as the floats are, so each pass over the model counts, for each value of the next 16 bits, the entries
that share all digits computed so far (a radix select).
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIGIT = 16  # bits
SAMPLED = 64  # a sample is one entry of so many, in runs of so many
# The bracket reaches so many standard errors of the sample's rank, and so large a part of the sample, to either side.
ERRORS = 8
MARGIN = 0.005
SMALLEST_SAMPLE = 1 << 12  # entries of all models; below it the whole is small
MOST_COLLECTED = 1 << 24  # entries of one model

# Called with the number of a model and a flat piece of its magnitudes, from any thread.
Visit = Callable[[int, Any], None]


class Sweep(Protocol):
    """Calls `visit` with every piece of magnitudes of every model, or with a sample of them."""

    def __call__(self, visit: Visit, sampled: bool) -> None: ...


def magnitude_thresholds(fractions: Sequence[float], sweep: Sweep, double: bool) -> tuple[float, ...]:
    """Return, for each model, the smallest magnitude among its max(int(fraction * n), 1) largest; 0 where all are kept.

    Args:
        fractions: of entries kept, one per model, above 0 and up to 1.
        double: whether the magnitudes are float64, not float32.
    """
    if all(fraction == 1 for fraction in fractions):
        return (0.0,) * len(fractions)
    values = _by_sample(fractions, sweep) or _by_digits(fractions, sweep, double)
    return tuple(0.0 if f == 1 else value for f, value in zip(fractions, values, strict=True))


def sample(vector: Any) -> Any:
    """Return one of SAMPLED entries of an array or tensor, as many columns of rows where it is long."""
    rows = len(vector) // SAMPLED**2
    return vector[: rows * SAMPLED**2].reshape(rows, -1)[:, :SAMPLED] if rows else vector[::SAMPLED]


def _by_sample(fractions: Sequence[float], sweep: Sweep) -> tuple[float, ...] | None:
    """Return the thresholds by two sweeps, one over a sample; None where the bracket of a model misses its threshold."""
    import numpy as np

    samples: list[list[NDArray[Any]]] = [[] for _ in fractions]
    sweep(lambda model, piece: samples[model].append(np.array(piece)), True)
    joined = [np.concatenate(pieces) if pieces else np.empty(0) for pieces in samples]
    if sum(map(len, joined)) < SMALLEST_SAMPLE:
        return None
    brackets = [_bracket(sample, f) for sample, f in zip(joined, fractions, strict=True)]
    lock = threading.Lock()
    counts, above, inside = [0] * len(fractions), [0] * len(fractions), [0] * len(fractions)
    collected: list[list[NDArray[Any]]] = [[] for _ in fractions]

    def collect(model: int, piece: Any) -> None:
        if fractions[model] == 1:
            return
        low, high = (piece.dtype.type(end) for end in brackets[model])
        upper, within = piece >= high, piece >= low
        within ^= upper
        larger, held = int(np.count_nonzero(upper)), int(np.count_nonzero(within))
        magnitudes = piece[within] if held and inside[model] <= MOST_COLLECTED else piece[:0]
        with lock:
            counts[model] += len(piece)
            above[model] += larger
            inside[model] += held
            collected[model].append(magnitudes)

    sweep(collect, False)
    thresholds = []
    for model, fraction in enumerate(fractions):
        rank = max(int(fraction * counts[model]), 1) - above[model]  # among those inside
        if fraction == 1:
            thresholds.append(0.0)
        elif not 1 <= rank <= inside[model] <= MOST_COLLECTED:
            return None
        else:
            values = np.concatenate(collected[model])
            values.partition(len(values) - rank)
            thresholds.append(float(values[len(values) - rank]))
    return tuple(thresholds)


def _bracket(sample: NDArray[Any], fraction: float) -> tuple[float, float]:
    """Return magnitudes below and above the threshold of the whole, as far as a sample shows."""
    import numpy as np

    size = len(sample)
    if not size or fraction == 1:
        return 0.0, 0.0
    margin = ERRORS * math.sqrt(size * fraction * (1 - fraction)) + MARGIN * size + 1
    position = size * (1 - fraction)
    first, last = max(int(position - margin), 0), int(position + margin)
    ordered = np.partition(sample, sorted({first, min(last, size - 1)}))
    return float(ordered[first]) if first else 0.0, float(ordered[last]) if last < size else math.inf


def _by_digits(fractions: Sequence[float], sweep: Sweep, double: bool) -> tuple[float, ...]:
    """Return the thresholds by two sweeps over everything, four for float64."""
    import numpy as np

    leading = [0] * len(fractions)  # the digits of each threshold so far, as one integer
    ranks: list[int] = []  # of each threshold among the entries that share these digits
    lock = threading.Lock()
    for shift in range(48 if double else 16, -1, -DIGIT):
        counts = np.zeros((len(fractions), 1 << DIGIT), dtype=np.int64)

        def count(model: int, piece: Any, shift: int = shift, counts: Any = counts, first: bool = not ranks) -> None:
            bits = piece.view(np.int64 if double else np.int32)
            digit = bits >> shift
            if not first:
                digit = digit[(digit >> DIGIT) == leading[model]] & ((1 << DIGIT) - 1)
            histogram = np.bincount(digit, minlength=1 << DIGIT)
            with lock:
                counts[model] += histogram

        sweep(count, False)
        if not ranks:
            ranks = [max(int(f * int(n)), 1) for f, n in zip(fractions, counts.sum(axis=1), strict=True)]
        for model in range(len(fractions)):
            at_least = np.cumsum(counts[model][::-1])[::-1]  # entries whose digit is this or larger
            digit = int(np.flatnonzero(at_least >= ranks[model])[-1])
            ranks[model] -= int(at_least[digit] - counts[model][digit])
            leading[model] = leading[model] << DIGIT | digit
    form = "<d" if double else "<f"
    return tuple(struct.unpack(form, bits.to_bytes(8 if double else 4, "little"))[0] for bits in leading)
