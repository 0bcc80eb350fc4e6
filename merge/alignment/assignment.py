"""Exact assignment: which unit of B fills each place of A."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from merge.errors import AlignmentError

# Units that never vary have equal gains everywhere; this nudge keeps them where they are instead of shuffling them.
TIE_BREAK = 1e-9


def match_axis(gain: Float[Tensor, "n n"]) -> Int[Tensor, " n"]:
    """Return the one-to-one matching of B's units to A's places with the largest total gain.

    Maximises sum_i gain[i, p[i]] exactly: by the row-wise argmax where that is one-to-one, else by the Hungarian
    algorithm. Ties go to the identity.

    Args:
        gain: gain[i, j] says how well unit j of B fills place i of A; float64, larger is better.
    Returns:
        Index array p: place i takes unit p[i] of B.
    Raises:
        AlignmentError: gain holds a NaN or an infinity.
    Source: Ainsworth et al. 2023, arXiv:2209.04836, section 3.2.
    """
    from scipy.optimize import linear_sum_assignment

    if not torch.isfinite(gain).all():
        raise AlignmentError(
            f"a gain matrix of size {len(gain)} holds NaN or infinity: do both models have finite weights?"
        )
    nudged = gain.clone()
    nudged.diagonal().add_(TIE_BREAK * gain.abs().max())
    best = nudged.argmax(1)
    if len(torch.unique(best)) == len(best):
        return best
    return torch.as_tensor(linear_sum_assignment(nudged.numpy(), maximize=True)[1])


def match_heads(
    gains: Sequence[Float[Tensor, "heads n heads n"]],
) -> tuple[Int[Tensor, " heads"], list[Int[Tensor, "heads n"]]]:
    """Return the matching of heads and, inside each matched pair, of units: the two-level assignment.

    For every pair of heads the best inner order of each inner axis is found, and its total is what the pair is worth;
    the heads are then matched on those totals. Exact, because the inner orders of different pairs do not interact.

    Args:
        gains: one array per inner axis (qk, v): gains[a][g, i, h, j] says how well unit j of B's head h fills place i
            of A's head g. Inner sizes may differ between the axes.
    Returns:
        (heads, inner): place g takes head heads[g] of B, with units inner[a][g] of that head.
    """
    count = gains[0].shape[0]
    totals = torch.zeros(count, count, dtype=torch.float64)
    orders: list[list[list[Tensor]]] = [[[torch.empty(0)] * count for _ in range(count)] for _ in gains]
    for axis, gain in enumerate(gains):
        for g in range(count):
            for h in range(count):
                block = gain[g, :, h, :]
                order = match_axis(block)
                orders[axis][g][h] = order
                totals[g, h] += block.gather(1, order[:, None]).sum()
    heads = match_axis(totals)
    return heads, [torch.stack([orders[a][g][int(heads[g])] for g in range(count)]) for a in range(len(gains))]
