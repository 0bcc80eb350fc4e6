"""Exact assignment of B's units to A's positions.

Three ways to the same optimum, the cheapest first: the row-wise argmax where it is one-to-one; for large matrices a sparse
problem of the best candidates, proved optimal by its dual prices on the whole matrix; the Hungarian algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from merge.errors import AlignmentError

# Units that never vary have equal gains everywhere; this share of the largest gain, added to the diagonal, keeps them in
# position instead of shuffling them.
TIE_BREAK = 1e-9

# From this size on, the sparse problem is cheaper than the dense one, unless few positions have a best unit that is best for
# another too: the Hungarian algorithm searches for a path from each of those alone.
MIN_SPARSE_SIZE, MAX_DOUBLED_SHARE = 1024, 1 / 16
# Candidates of each position and of each unit in the sparse problem, and how often it may be widened.
CANDIDATES, MAX_ROUNDS = 40, 8
# Of the largest gain: how far a reduced gain may be above zero and count as rounding; far below the nudge.
REL_SLACK = 1e-11
# Rows of the matrix that are checked at a time.
CHUNK = 256


def match_axis(gain: Float[Tensor, "n n"]) -> Int[Tensor, " n"]:
    """Return the one-to-one matching of B's units to A's positions with the largest total gain.

    Maximises sum_i gain[i, p[i]] exactly. Ties go to the identity.

    Args:
        gain: gain[i, j] is how well unit j of B fits position i of A, larger is better. Sums are in float64, whatever its dtype.
    Returns:
        Index array p: position i takes unit p[i] of B.
    Raises:
        AlignmentError: gain holds a NaN or an infinity.
    Source: Ainsworth et al. 2023, arXiv:2209.04836, section 3.2.
    """
    from scipy.optimize import linear_sum_assignment

    least, most = map(float, gain.aminmax())  # NaN where there is one
    if not (math.isfinite(least) and math.isfinite(most)):
        raise AlignmentError(
            f"a gain matrix of size {len(gain)} holds NaN or infinity: do both models have finite weights?"
        )
    nudge = TIE_BREAK * max(-least, most)
    largest, best = gain.max(1)
    best = torch.where(gain.diagonal().double() + nudge >= largest, torch.arange(len(gain)), best)
    if int(torch.bincount(best).max()) == 1:
        return best
    doubled = len(gain) - int((torch.bincount(best) > 0).sum())
    if len(gain) >= MIN_SPARSE_SIZE and doubled > MAX_DOUBLED_SHARE * len(gain):
        matching = match_sparse(gain, nudge)
        if matching is not None:
            return matching
    nudged = gain.to(torch.float64, copy=True)
    nudged.diagonal().add_(nudge)
    return torch.as_tensor(linear_sum_assignment(nudged.numpy(), maximize=True)[1])


def match_sparse(gain: Float[Tensor, "n n"], nudge: float = 0.0) -> Int[Tensor, " n"] | None:
    """Return the best matching, from the best candidates alone, or None where it cannot be proved best.

    Solves the problem on each position's and each unit's best candidates, finds prices u, v with u_i + v_j >= gain[i, j] on
    them and equality where matched, and checks the inequality on the whole matrix: if it holds everywhere no matching
    gains more (linear programming duality). Where it does not, those entries become candidates too.

    Args:
        gain: finite.
        nudge: added to the diagonal.
    Source: Jonker and Volgenant 1987, doi:10.1007/BF02278710 (the sparse solver, in scipy).
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    n, top = len(gain), max(-float(gain.min()), float(gain.max()))
    candidates = _candidates(gain)
    for _ in range(MAX_ROUNDS):
        rows, columns = candidates.nonzero(as_tuple=True)
        if len(rows) > n * n // 8:
            return None
        entries = gain[rows, columns].double() + nudge * (rows == columns)
        cost = (2 * top or 1.0) - entries  # positive: to scipy a stored zero is no edge
        graph = csr_matrix((cost.numpy(), (rows.numpy(), columns.numpy())), shape=(n, n))
        try:
            matched = torch.as_tensor(min_weight_full_bipartite_matching(graph)[1]).long()
        except ValueError:  # no full matching among the candidates
            return None
        positions = torch.arange(n)
        own = gain[positions, matched].double() + nudge * (positions == matched)
        price = _prices(entries - own[rows], matched[rows], columns, n, REL_SLACK * top / 10)
        if price is None:
            return None
        if not _widen(candidates, gain, own - price[matched], price, REL_SLACK * top):
            return matched
    return None


def _candidates(gain: Float[Tensor, "n n"]) -> Tensor:
    """Return a mask of every row's and every column's largest entries and of the diagonal."""
    mask = gain >= _least_of_largest(gain)[:, None]
    mask |= gain >= _least_of_largest(gain.T)
    mask.fill_diagonal_(True)
    return mask


def _least_of_largest(gain: Float[Tensor, "n n"]) -> Tensor:
    """Return the smallest of every row's CANDIDATES largest entries, rounded to float32."""
    last, least = len(gain) - CANDIDATES, torch.empty(len(gain))
    for rows, filled in zip(gain.split(CHUNK), least.split(CHUNK), strict=True):
        entries = rows.to(torch.float32, memory_format=torch.contiguous_format, copy=True).numpy()
        entries.partition(last, axis=1)
        filled.copy_(torch.as_tensor(entries[:, last]))
    return least


def _prices(step: Tensor, source: Tensor, columns: Tensor, n: int, slack: float) -> Float[Tensor, " n"] | None:
    """Return prices of the columns with v[columns] >= v[source] + step for every candidate (Bellman-Ford)."""
    price = torch.zeros(n, dtype=torch.float64)
    for _ in range(n):
        raised = price.scatter_reduce(0, columns, price[source] + step, "amax")
        if float((raised - price).max()) <= slack:
            return price
        price = raised
    return None


def _widen(mask: Tensor, gain: Tensor, rent: Tensor, price: Tensor, slack: float) -> int:
    """Mark the entries that exceed the sum of both their prices, and return how many there are."""
    total = 0
    for start in range(0, len(gain), CHUNK):
        rows = slice(start, start + CHUNK)
        over = gain[rows] - price > (rent[rows] + slack)[:, None]
        count = int(over.sum())
        if count:
            mask[rows] |= over
            total += count
    return total


def match_lazily(bound: Float[Tensor, "n n"], score: Callable[[int, int], float]) -> Int[Tensor, " n"]:
    """Return the best matching of pairs whose score is expensive to compute and never above a bound.

    Matches on the bounds, replaces those of the matched pairs by their scores, and again, until the score of every matched
    pair is computed. Exact: no pair that was left out scores more than the bound it was compared by.
    """
    gain, scored = bound.clone(), set[tuple[int, int]]()
    while True:
        matched = match_axis(gain)
        new = [pair for pair in enumerate(matched.tolist()) if pair not in scored]
        if not new:
            return matched
        for pair in new:
            gain[pair] = score(*pair)
            scored.add(pair)


def match_heads(
    gains: Sequence[Float[Tensor, "heads n heads n"]],
) -> tuple[Int[Tensor, " heads"], list[Int[Tensor, "heads n"]]]:
    """Return the matching of heads and, inside each matched pair, of units: the two-level assignment.

    The score of a pair of heads is the total gain of the best inner order of each inner axis; heads are matched on that.
    Exact, because the inner orders of different pairs do not interact.

    Args:
        gains: one array per inner axis (qk, v): gains[a][g, i, h, j] is how well unit j of B's head h fits position i
            of A's head g. Inner sizes may differ between the axes.
    Returns:
        (heads, inner): position g takes head heads[g] of B, with units inner[a][g] of that head.
    """
    orders: dict[tuple[int, int], list[Tensor]] = {}

    def score(g: int, h: int) -> float:
        blocks = [gain[g, :, h, :] for gain in gains]
        orders[g, h] = [match_axis(block) for block in blocks]
        return sum(
            float(block.gather(1, order[:, None]).sum()) for block, order in zip(blocks, orders[g, h], strict=True)
        )

    heads = match_lazily(sum((inner_bound(gain) for gain in gains), torch.zeros(())), score)
    chosen = [orders[g, h] for g, h in enumerate(heads.tolist())]
    return heads, [torch.stack([order[axis] for order in chosen]) for axis in range(len(gains))]


def inner_bound(gain: Float[Tensor, "blocks n blocks n"]) -> Float[Tensor, "blocks blocks"]:
    """Return an upper bound of every order inside a pair of blocks: each position's best unit, or each unit's best position."""
    return torch.minimum(gain.amax(3).sum(1), gain.amax(1).sum(-1))
