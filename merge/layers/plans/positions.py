"""Strategies that select layers by their position, or by a score of each."""

from __future__ import annotations

from collections.abc import Sequence

from merge.errors import UsageError, nearest

STRATEGIES = ("top", "bottom", "odd", "even", "symmetric", "contribution")  # of Sajjad et al.


def dropped_layers(strategy: str, count: int, total: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
    """Return the layers that a strategy drops, ascending.

    top: the last `count`; bottom: the first; odd, even: every other layer from the top down, those with an odd or even
    number counted from 1 (of 12, four: 5, 7, 9, 11 or 6, 8, 10, 12); symmetric: the middle, with equally many kept at
    the bottom and the top; contribution: those with the lowest importance scores (of equal scores the upper layer).

    Args:
        scores: the importance of each layer, for contribution only.
    Raises:
        UsageError: the strategy is unknown or cannot drop that many.
    Source: Sajjad et al. 2023, arXiv:2004.03844, section 3.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"unknown strategy {strategy!r}.{nearest(strategy, STRATEGIES)}")
    if not 0 < count < total:
        raise UsageError(f"cannot drop {count} of {total} layers: expected 1 to {total - 1}.")
    if strategy != "contribution" and scores is not None:
        raise UsageError(f"strategy {strategy} takes no scores; only contribution does.")
    if strategy == "top":
        return tuple(range(total - count, total))
    if strategy == "bottom":
        return tuple(range(count))
    if strategy == "contribution":
        return _least(scores, count, total)
    if strategy == "symmetric":
        if (total - count) % 2:
            raise UsageError(
                f"symmetric keeps equally many layers at the bottom and at the top, but dropping {count} of {total} leaves "
                f"{total - count}, an odd number."
            )
        kept = (total - count) // 2
        return tuple(range(kept, total - kept))
    numbers = [layer for layer in range(total) if (layer + 1) % 2 == (strategy == "odd")]
    if count > len(numbers):
        raise UsageError(f"{strategy} can drop {len(numbers)} of {total} layers, not {count}.")
    return tuple(numbers[-count:])


def _least(scores: Sequence[float] | None, count: int, total: int) -> tuple[int, ...]:
    if scores is None or len(scores) != total:
        raise UsageError(f"contribution needs a score for each of {total} layers, found {len(scores or ())}.")
    if any(score != score for score in scores):
        raise UsageError("the score of a layer is not a number (NaN), so layers cannot be ranked.")
    return tuple(sorted(sorted(range(total), key=lambda layer: (scores[layer], -layer))[:count]))
