"""The k-th largest magnitude of a whole model, exactly, without holding or sorting the model.

The bits of a non-negative float, read as an integer, are ordered as the floats are. So the k-th largest is computed digit by
digit, 16 bits at a time (a radix select): each pass over the model counts, for each value of the next digit, the entries that
share all digits computed so far.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

DIGIT = 16  # bits

# Called with the number of a model and a flat piece of its magnitudes, from any thread.
Visit = Callable[[int, "Tensor"], None]


def magnitude_thresholds(fractions: Sequence[float], sweep: Callable[[Visit], None], double: bool) -> tuple[float, ...]:
    """Return, for each model, the smallest magnitude among its max(int(fraction * n), 1) largest; 0 where all are kept.

    Args:
        fractions: of entries kept, one per model, above 0 and up to 1.
        sweep: calls its argument with every piece of magnitudes of every model; it runs twice, four times for float64.
        double: whether the magnitudes are float64, not float32.
    """
    import numpy as np

    models = range(len(fractions))
    if all(fraction == 1 for fraction in fractions):
        return (0.0,) * len(fractions)
    leading = [0] * len(fractions)  # the digits of each threshold so far, as one integer
    ranks: list[int] = []  # of each threshold among the entries that share these digits
    lock = threading.Lock()
    for shift in range(48 if double else 16, -1, -DIGIT):
        counts = np.zeros((len(fractions), 1 << DIGIT), dtype=np.int64)

        def count(model: int, piece: Tensor, shift: int = shift, counts: Any = counts, first: bool = not ranks) -> None:
            bits: Any = piece.numpy().view(np.int64 if double else np.int32)
            digit = bits >> shift
            if not first:
                digit = digit[(digit >> DIGIT) == leading[model]] & ((1 << DIGIT) - 1)
            histogram = np.bincount(digit, minlength=1 << DIGIT)
            with lock:
                counts[model] += histogram

        sweep(count)
        if not ranks:
            ranks = [max(int(f * int(n)), 1) for f, n in zip(fractions, counts.sum(axis=1), strict=True)]
        for model in models:
            at_least = np.cumsum(counts[model][::-1])[::-1]  # entries whose digit is this or larger
            digit = int(np.flatnonzero(at_least >= ranks[model])[-1])
            ranks[model] -= int(at_least[digit] - counts[model][digit])
            leading[model] = leading[model] << DIGIT | digit
    form = "<d" if double else "<f"
    values = (struct.unpack(form, bits.to_bytes(8 if double else 4, "little"))[0] for bits in leading)
    return tuple(0.0 if f == 1 else value for f, value in zip(fractions, values, strict=True))
