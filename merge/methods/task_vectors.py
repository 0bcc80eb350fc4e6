"""Task vectors, the differences between fine-tuned models and their base: trimming, random drops, sign election, sums."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from merge.errors import UsageError
from merge.methods.checks import check_each, check_flag, check_number, check_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from merge.methods.context import TensorContext

# Rescaling of the entries that a random mask keeps: by 1 / keep probability, to the L1 norm before, or none.
RESCALES = ("probability", "l1", "none")


def check_sum(
    method: str, weights: tuple[float, ...] | None, normalize: bool, scale: float, elect: bool = False
) -> None:
    """Check the settings of a sum of task vectors.

    Raises:
        UsageError: a setting has the wrong type or range, or a mean over elected signs has a negative weight.
    """
    check_flag(method, "normalize", normalize)
    check_number(method, "scale", scale)
    check_weights(method, weights, normalize, can_turn_off=True)
    if elect and normalize and weights is not None and min(weights) < 0:
        raise UsageError(
            f"{method}: weights must not be negative when agreeing models are averaged, found {min(weights)!r}. "
            "Set normalize=false to subtract a model."
        )


def check_densities(method: str, density: float | tuple[float, ...]) -> None:
    """Stop unless `density` is a fraction from 0 to 1, for all models or one per model; 0 leaves a model's changes out."""
    check_each(method, "density", density, 0, 1)


def base_of(method: str, base: Tensor | None) -> Tensor:
    """Return the base.

    Raises:
        UsageError: it is None.
    """
    if base is None:
        raise UsageError(f"{method} adds task vectors to a base, and none was given. Give --base, their common start.")
    return base


def deltas(tensors: Sequence[Tensor], base: Tensor) -> Iterator[Tensor]:
    """Return the task vectors d_m = theta_m - theta_0, computed one at a time."""
    return (tensor - base for tensor in tensors)


def generators_of(method: str, context: TensorContext, models: int) -> tuple[torch.Generator, ...]:
    """Return the context's generators, one per model.

    Raises:
        UsageError: their number is not that of the models.
    """
    if len(context.generators) != models:
        raise UsageError(
            f"{method} draws a random mask per model, found {len(context.generators)} generators for {models} models. "
            "Give context=TensorContext(generators=mask_generators(seed, name, keys))."
        )
    return context.generators


def kept_count(density: float, entries: int) -> int:
    """Return the number of entries that a density keeps: int(density * entries), at least one unless the density is 0."""
    return min(max(int(density * entries), 1), entries) if density > 0 else 0


def smallest_kept(delta: Tensor, density: float) -> float:
    """Return the smallest magnitude among the `density` largest entries; 0 for an empty tensor.

    By a partition instead of a sort: its time is linear in the number of entries.
    """
    magnitudes = delta.abs().flatten().cpu().numpy()
    if magnitudes.size == 0:
        return 0.0
    rank = magnitudes.size - kept_count(density, magnitudes.size)
    magnitudes.partition(rank)
    return float(magnitudes[rank])


def keep_first(delta: Tensor, count: int, dropped: int = 0, upwards: bool = False) -> Tensor:
    """Return `delta` with all but `count` entries set to 0: the largest in magnitude after the `dropped` largest.

    Exactly `count` are kept, or all that are left if those are fewer. Of entries that tie, those are kept that torch's sort
    puts on that side, as in mergekit, which ranks in float32; the sort runs only where a tie has to be broken.

    Args:
        upwards: sort from the smallest to the largest (mergekit's breadcrumbs), not downwards (its TIES).
    """
    import torch

    magnitudes = delta.abs().reshape(-1).float()
    size = magnitudes.numel()
    first = max(0, size - count - dropped)
    if count <= 0 or size == 0:
        return torch.zeros_like(delta)
    ordered = magnitudes.cpu().numpy().copy()
    ordered.partition(first)
    smallest, largest = float(ordered[first]), math.inf
    if first + count < size:  # a second partition of the rest, as in kept_band
        rest = ordered[first:]
        rest.partition(count - 1)
        largest = float(rest[count - 1])
    mask = (magnitudes >= smallest) & (magnitudes <= largest)
    if int(mask.sum()) != count:
        last = min(first + count, size)
        order = torch.argsort(magnitudes, descending=not upwards)
        chosen = order[first:last] if upwards else order[size - last : size - first]
        mask = torch.zeros(size, dtype=torch.bool, device=delta.device).index_fill_(0, chosen, True)
    return delta * mask.reshape(delta.shape)


def kept_band(delta: Tensor, density: float, gamma: float) -> tuple[float, float]:
    """Return the smallest and largest magnitude kept after dropping the `gamma` largest, then the smallest beyond `density`.

    Fewer of the largest are dropped where fewer than `density` would be left.
    """
    magnitudes = delta.abs().flatten().cpu().numpy()
    if magnitudes.size == 0:
        return 0.0, 0.0
    count = kept_count(density, magnitudes.size)
    first = max(0, magnitudes.size - count - int(gamma * magnitudes.size))
    magnitudes.partition(first)
    smallest = float(magnitudes[first])
    # A second partition of the rest: numpy is slower at one partition of two ranks.
    rest = magnitudes[first:]
    rest.partition(count - 1)
    return smallest, float(rest[count - 1])


def trim(delta: Tensor, threshold: float) -> Tensor:
    """Return `delta` with every entry smaller in magnitude than `threshold` set to 0.

    All entries equal to the threshold are kept, so the result does not depend on their order.
    """
    import numpy as np
    import torch

    kind = np.float64 if delta.dtype == torch.float64 else np.float32
    # hardshrink, one pass over memory, keeps entries above a limit; the limit is the next smaller number.
    limit = kind(threshold)
    if float(limit) >= threshold:
        limit = np.nextafter(limit, kind(0))
    return torch.nn.functional.hardshrink(delta, float(limit))


def drop(delta: Tensor, keep: float | Tensor, rescale: str, generator: torch.Generator) -> Tensor:
    """Return `delta` with each entry kept with probability `keep`, else 0, then rescaled.

    It is `delta` itself if `keep` is 1, and zero if it is 0.

    One float32 draw per entry in flat order; an entry is kept where draw < keep.

    Args:
        keep: a number, or a tensor with one per entry.
        rescale: one of RESCALES.
    """
    import torch

    if isinstance(keep, int | float) and keep == 1:
        return delta
    if isinstance(keep, int | float) and keep == 0:
        return torch.zeros_like(delta)
    kept = delta * torch.rand(delta.shape, generator=generator).to(delta.device).lt_(keep)
    if rescale == "probability":
        return kept.div_(keep)
    return kept.mul_(norm_ratio(delta, kept)) if rescale == "l1" else kept


def norm_ratio(delta: Tensor, kept: Tensor) -> float:
    """Return the L1 norm of `delta` divided by that of `kept`, in float64; 1 if nothing was kept."""
    import torch

    # numpy's sum, unlike torch's, does not depend on the number of threads.
    before, after = (float(abs(x.cpu().numpy()).sum(dtype="float64")) for x in (delta, kept))
    return min(before / after, torch.finfo(delta.dtype).max) if after > 0 else 1.0


def elected_sign(task_vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return +1 or -1 per entry: the sign of sum_m w_m d_m, + where that is 0."""
    import torch

    total = task_vectors[0] * weights[0]
    part = torch.empty_like(total)
    for delta, weight in zip(task_vectors[1:], weights[1:], strict=True):
        # Rounded before it is added: fused with the sum, as add_(alpha=...) may be, products that cancel leave a rest.
        total.add_(torch.mul(delta, weight, out=part))
    # A sum of -0.0 has only zero entries, which are never kept, so its sign does not matter.
    return torch.copysign(total.new_ones(()), total)


def sum_agreeing(
    task_vectors: Sequence[Tensor], weights: Sequence[float], sign: Tensor, normalize: bool, floor: float = 0.0
) -> Tensor:
    """Return the magnitude of the sum of the w_m d_m with the elected sign, or of the weighted mean if normalised.

    Zeros (trimmed or dropped entries) have no sign and do not count in the mean; a smaller sum of weights counts as the floor.
    """
    import torch

    total, part = torch.zeros_like(sign), torch.empty_like(sign)
    weight_sum = torch.zeros_like(sign) if normalize else None
    for delta, weight in zip(task_vectors, weights, strict=True):
        torch.mul(delta, sign, out=part)
        if weight != 1:
            part.mul_(weight)
        total.add_(part.clamp_(min=0))
        if weight_sum is not None:
            weight_sum.add_(part.sign_(), alpha=weight)
    if weight_sum is not None:
        total.div_(weight_sum.clamp_(min=max(floor, torch.finfo(sign.dtype).tiny)))
    return total


def fuse(
    base: Tensor,
    task_vectors: Iterable[Tensor],
    weights: Sequence[float],
    normalize: bool,
    scale: float,
    elect: bool = False,
) -> Tensor:
    """Return base + scale * sum_m w_m d_m, divided by sum(weights) if normalised.

    With `elect` each entry elects a sign, and only the models with that sign are summed, or averaged by their weights.
    """
    if elect:
        import torch

        vectors = tuple(task_vectors)
        sign = elected_sign(vectors, weights)
        return torch.addcmul(base, sum_agreeing(vectors, weights, sign, normalize), sign, value=scale)
    factor = scale / math.fsum(weights) if normalize else scale
    total: Tensor | None = None
    for delta, weight in zip(task_vectors, weights, strict=True):
        part = delta * (weight * factor)
        if total is None:
            total = part
        else:
            total += part
    assert total is not None
    total += base
    return total
