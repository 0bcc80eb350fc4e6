"""Procrustes: the continuous maps that line two models up, in closed form: bases inside heads, rotary pairs, the residual.

Everywhere the map G is the one that brings b to a: rows of role `out` become G x, rows of role `in` G^-T y, so that
x^T y, which is all that a head shows, stays what it is. Arrays have one matrix for each block (head) in front; all of it
in float64, and no matrix is larger than a head's but the residual's own.

Sources: Schoenemann 1966, doi:10.1007/BF02289451 (orthogonal); Zhang et al. 2025, arXiv:2502.00264 (inside heads).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from merge.errors import AlignmentError

# Where the two parts of a rotary pair stand: i and i + n/2 (Llama, ModernBERT), or 2i and 2i + 1 (RoFormer).
LAYOUTS = ("halves", "interleaved")

# A singular value below this share of the largest is zero: the head does not use that direction, and no map reaches it.
RANK = 1e-10


def orthogonal(gain: Float[Tensor, "... n n"]) -> Float[Tensor, "... n n"]:
    """Return the orthogonal G that maximises <gain, G>: U V^T of its singular value decomposition; reflections count."""
    left, _, right = torch.linalg.svd(gain.double())
    return left @ right


def head_maps(a: Sequence[Tensor], b: Sequence[Tensor]) -> Float[Tensor, "heads n n"]:
    """Return for each head the orthogonal G that maximises <A, G B>, added up over the pairs of arrays.

    G = U V^T of SVD(sum A B^T). For queries and keys the arrays are [W_Q | b_Q] and W_K, for values [W_V | b_V] and W_O^T.

    Args:
        a, b: arrays of shape (heads, n, d), or (heads, queries, n, d) where a group of query heads shares the basis.
    """
    return orthogonal(sum((_products(x, y) for x, y in zip(a, b, strict=True)), torch.zeros(())))


def _products(a: Tensor, b: Tensor) -> Float[Tensor, "heads n n"]:
    if a.shape != b.shape:
        raise AlignmentError(
            f"rows of a have shape {tuple(a.shape)}, those of b {tuple(b.shape)}. Are they the same heads?"
        )
    product = a.double() @ b.double().mT
    return product.sum(1) if product.ndim == 4 else product


def balanced(
    out: Float[Tensor, "heads n d"], into: Float[Tensor, "heads n e"]
) -> tuple[Float[Tensor, "heads n d"], Float[Tensor, "heads n e"]]:
    """Return both factors of every head in the basis where they weigh alike: out^T into stays what it is.

    With out^T into = U S V^T they become S^.5 U^T and S^.5 V^T, unique but for signs where singular values differ. The
    decomposition is of a matrix of the size of the head, by QR of both factors first.
    """
    left, right = (torch.linalg.qr(x.double().mT) for x in (out, into))
    u, s, vh = torch.linalg.svd(left.R @ right.R.mT)
    root = s.sqrt()[..., None]
    return root * (left.Q @ u).mT, root * (right.Q @ vh.mT).mT


def balancing(out: Float[Tensor, "heads n d"], into: Float[Tensor, "heads n e"]) -> Float[Tensor, "heads n n"]:
    """Return the map G that balances every head: `balanced` gives G out and G^-T into.

    Raises:
        AlignmentError: a head has directions that it does not use; no invertible map balances it.
    """
    left, right = (torch.linalg.qr(x.double().mT).R for x in (out, into))
    u, s, _ = torch.linalg.svd(left @ right.mT)
    if bool((s[..., -1] <= RANK * s[..., 0]).any()):
        head = int((s[..., -1] <= RANK * s[..., 0]).nonzero()[0])
        raise AlignmentError(f"head {head} does not use all of its {s.shape[-1]} directions and cannot be balanced.")
    return s.sqrt()[..., None] * torch.linalg.solve(left, u).mT


def rotary_maps(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], layout: str = "halves"
) -> Complex[Tensor, "heads pairs"]:
    """Return for each rotary pair of each head the complex scalar r e^(i theta) that brings b to a.

    With the pair's two rows read as one complex row: r^2 = (|q_a| |k_b|) / (|k_a| |q_b|) gives b's queries and keys the
    proportion they have in a, and theta = arg(sum r q_a conj(q_b) + k_a conj(k_b) / r) maximises the inner product then.

    Args:
        a, b: (queries, keys), rows of shape (heads, n, d), or (heads, queries, n, d) where a group shares its keys.
        layout: where the two rows of a pair stand, one of LAYOUTS.
    Raises:
        AlignmentError: the layout is none of LAYOUTS.
    """
    q_a, k_a, q_b, k_b = (_as_complex(x, layout) for x in (*a, *b))
    sizes = [x.abs().square().sum(-1).sqrt() for x in (q_a, k_b, k_a, q_b)]
    numerator, denominator = sizes[0] * sizes[1], sizes[2] * sizes[3]
    whole = (numerator > 0) & (denominator > 0)  # a pair that is zero somewhere has no proportion to keep
    r = torch.where(whole, numerator / torch.where(whole, denominator, 1.0), 1.0).sqrt()
    inner = r * (q_a * q_b.conj()).sum(-1) + (k_a * k_b.conj()).sum(-1) / r
    return torch.polar(r, inner.angle())


def _as_complex(rows: Tensor, layout: str) -> Complex[Tensor, "heads pairs d"]:
    if layout not in LAYOUTS:
        raise AlignmentError(f"no rotary layout {layout!r}. Known: {', '.join(LAYOUTS)}.")
    if rows.ndim == 4:  # what a group's query heads say of its pairs counts together
        rows = rows.movedim(1, 2).flatten(2)
    rows = rows.double()
    parts = rows.chunk(2, 1) if layout == "halves" else (rows[:, 0::2], rows[:, 1::2])
    return torch.complex(parts[0].contiguous(), parts[1].contiguous())


def rotary_matrices(scalars: Complex[Tensor, "heads pairs"], layout: str = "halves") -> Float[Tensor, "heads n n"]:
    """Return the real matrices that multiply each rotary pair by its scalar."""
    heads, pairs = scalars.shape
    i = torch.arange(pairs)
    one, other = (i, i + pairs) if layout == "halves" else (2 * i, 2 * i + 1)
    out = torch.zeros(heads, 2 * pairs, 2 * pairs, dtype=torch.float64)
    out[:, one, one] = out[:, other, other] = scalars.real
    out[:, one, other], out[:, other, one] = -scalars.imag, scalars.imag
    return out


def rotation_fixing_ones(gain: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Return the orthogonal O with O 1 = 1 that maximises <gain, O>: what a folded LayerNorm lets through.

    U V^T of SVD(C gain C) with C = I - 11^T/d, with 1 -> 1. Done in an orthonormal basis of what is at right angles to 1
    (a Householder reflection), so that it holds whatever the rank of the gain.
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
