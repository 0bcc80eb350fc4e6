"""Orthogonal Procrustes: the rotations that align two models, in closed form, inside heads and of the residual stream.

The map G brings b to a: rows of role `out` become G x, rows of role `in` G^-T y, so that x^T y, the only thing that a head's
outputs depend on, is unchanged. Arrays have the blocks (heads) in front; everything is computed in float64.

Sources: Schoenemann 1966, doi:10.1007/BF02289451 (orthogonal); Zhang et al. 2025, arXiv:2502.00264 (inside heads).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from merge.errors import AlignmentError

# A singular value below this share of the largest counts as zero: the head does not use that direction.
RANK_TOLERANCE = 1e-10
# Heads whose singular values, and those of the factor that is inverted, are all above these shares of the largest are balanced
# from products of their rows: these square the shares, and so cost up to as many digits again. Others by QR.
MIN_SINGULAR_IN_PRODUCTS, MIN_FACTOR_IN_PRODUCTS = 1e-2, 1e-3


def orthogonal(gain: Float[Tensor, "... n n"]) -> Float[Tensor, "... n n"]:
    """Return the orthogonal G that maximises <gain, G>: U V^T of its singular value decomposition; reflections included."""
    left, _, right = torch.linalg.svd(gain.double())
    return left @ right


def balancing(out: Float[Tensor, "heads n d"], into: Float[Tensor, "heads n e"]) -> Float[Tensor, "heads n n"]:
    """Return the map G of every head after which both its factors, G out and G^-T into, have the same size.

    With out^T into = U S V^T they become S^.5 U^T and S^.5 V^T, unique but for signs where singular values differ. The
    decomposition is of a matrix of the size of the head, by QR of both factors first.

    Raises:
        AlignmentError: a head has directions that it does not use; no invertible map balances it.
    """
    left, right = (torch.linalg.qr(x.double().mT).R for x in (out, into))
    u, s, _ = torch.linalg.svd(left @ right.mT)
    if bool((s[..., -1] <= RANK_TOLERANCE * s[..., 0]).any()):
        head = int((s[..., -1] <= RANK_TOLERANCE * s[..., 0]).nonzero()[0])
        raise AlignmentError(f"head {head} does not use all of its {s.shape[-1]} directions and cannot be balanced.")
    return s.sqrt()[..., None] * torch.linalg.solve(left, u).mT


def balancing_whole(
    out: Float[Tensor, "heads n d"], into: Float[Tensor, "heads n e"], min_ratio: float
) -> Float[Tensor, "heads n n"]:
    """Return the maps of `balancing`, the identity of heads with a singular value below a share of their largest.

    From the products of a factor's rows with one another: with L L^T = out out^T and L^T (into into^T) L = U S^2 U^T the map is
    S^.5 U^T L^-1. Where that costs too many digits, by QR.
    """
    n = out.shape[1]
    maps = torch.eye(n, dtype=torch.float64).repeat(len(out), 1, 1)
    if min(out.shape[2], into.shape[2]) < n:
        return maps  # with fewer columns than units some direction of a head has no effect
    left, failed = torch.linalg.cholesky_ex(out @ out.mT)
    squares, u = torch.linalg.eigh(left.mT @ (into @ into.mT) @ left)
    values, u = squares.clamp_min(0).sqrt().flip(-1), u.flip(-1)  # the largest first
    sizes = left.diagonal(0, 1, 2).abs()
    sure = (failed == 0) & (sizes.amin(1) > MIN_FACTOR_IN_PRODUCTS * sizes.amax(1))
    sure &= values[:, -1] > max(MIN_SINGULAR_IN_PRODUCTS, min_ratio) * values[:, 0]
    root = values[sure].sqrt()[..., None]
    maps[sure] = root * torch.linalg.solve_triangular(left[sure], u[sure].mT, upper=False, left=False)
    others = (~sure).nonzero()[:, 0]
    if len(others):
        rows = [torch.linalg.qr(x[others].mT).R for x in (out, into)]
        values = torch.linalg.svdvals(rows[0] @ rows[1].mT)
        others = others[values[:, -1] > min_ratio * values[:, 0]]
        if len(others):
            maps[others] = balancing(out[others], into[others])
    return maps


def rotation_fixing_ones(gain: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Return the orthogonal O with O 1 = 1 that maximises <gain, O>: a LayerNorm without gain commutes with it.

    U V^T of SVD(C gain C) with C = I - 11^T/d, with 1 -> 1. Computed in an orthonormal basis of the complement of 1
    (from a Householder reflection), so that it holds whatever the rank of the gain.
    """
    d = len(gain)
    normal = torch.full((d,), d**-0.5, dtype=torch.float64)
    normal[0] -= 1
    square = normal.square().sum()
    basis = torch.eye(d, dtype=torch.float64)
    if square > 0:
        basis -= 2 * torch.outer(normal, normal) / square
    across = basis[:, 1:]
    return across @ orthogonal(across.T @ gain.double() @ across) @ across.T + 1 / d
