"""Task vectors that elect a sign, trimmed, summed and added to their base in numpy, where a piece stays in the cache.

The operations are those of `task_vectors.fuse` with `elect`, on the bits of the numbers: comparisons and choices become
masks, which numpy computes faster than `where` and `maximum`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def elected_sum(
    base: NDArray[Any],
    tensors: Sequence[NDArray[Any]],
    thresholds: Sequence[float],
    weights: Sequence[float],
    normalize: bool,
    scale: float,
) -> NDArray[Any]:
    """Return base + scale * the sum, or the weighted mean, of the w_m d_m that have the elected sign.

    Args:
        base: a contiguous array, float32 or float64, as all are.
        thresholds: the smallest magnitude of each d_m = theta_m - theta_0 that counts; 0 for all.
    """
    import numpy as np

    integer, top = (np.int64, 63) if base.dtype == np.float64 else (np.int32, 31)
    weighted = []
    for tensor, threshold, weight in zip(tensors, thresholds, weights, strict=True):
        delta = tensor - base
        if threshold > 0:
            _trim(delta.view(integer), _bits(threshold, delta.dtype), top)
        if weight != 1:
            delta *= weight
        weighted.append(delta)
    total = weighted[0] + 0.0  # a sum of nothing but -0.0 is +0.0
    for delta in weighted[1:]:
        total += delta
    opposite = total.view(integer)  # its sign bit is set where the elected sign is +
    np.invert(opposite, out=opposite)
    merged = np.zeros_like(base)
    weight_sum = np.full_like(base, np.finfo(base.dtype).tiny) if normalize else None
    for delta, weight in zip(weighted, weights, strict=True):
        bits = delta.view(integer)
        mask = bits ^ opposite
        mask >>= top  # all bits where the signs agree
        bits &= mask
        bits &= np.iinfo(integer).max
        merged += delta
        if weight_sum is not None:
            np.negative(bits, out=mask)
            mask >>= top  # all bits where the magnitude is not 0
            mask &= base.dtype.type(weight).view(integer)
            weight_sum += mask.view(base.dtype)
    if weight_sum is not None:
        merged /= weight_sum
    np.invert(opposite, out=opposite)
    opposite &= np.iinfo(integer).min
    signed: Any = merged.view(integer)
    signed |= opposite
    if scale != 1:
        merged *= scale
    merged += base
    return merged


def _trim(bits: NDArray[Any], smallest: int, top: int) -> None:
    """Set the numbers with these bits to +0.0 where their magnitude is below the one with the bits `smallest`."""
    import numpy as np

    mask = bits & np.iinfo(bits.dtype).max
    np.subtract(smallest - 1, mask, out=mask)
    mask >>= top
    bits &= mask


def _bits(threshold: float, dtype: Any) -> int:
    """Return the bits of the smallest number of a dtype that is not below a positive threshold."""
    import numpy as np

    limit = dtype.type(threshold)
    if float(limit) < threshold:
        limit = np.nextafter(limit, dtype.type(np.inf))
    return int(limit.view(np.int64 if dtype == np.float64 else np.int32))
