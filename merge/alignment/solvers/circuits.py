"""Circuits: compare heads by products of weights that no basis inside them can change.

A head acts only through  [W_Q | b_Q]^T W_K  (which tokens it attends to; the key bias is dropped, softmax cancels it)
and  W_O [W_V | b_V]  (what it writes). Both are invariant to any invertible map inside the head. With rows X of role `out`
and Y of role `in`, head i's circuit is  X_i^T Y_i, and

    <X_i^T Y_i, X_j'^T Y_j'> = sum((X_i X_j'^T) o (Y_i Y_j'^T)),

which takes products of the size of a head and no matrix of the size of the model: O(H^2 dh^2 d) for all pairs of heads.
What has a fixed order inside (rotary queries and keys) is compared row by row. Every comparison is a cosine. Rows
distinguish heads too while these read different directions, or bases differ by rotations; where heads share directions and
their bases differ in general, only circuits do.

Source: Elhage et al. 2021, "A mathematical framework for transformer circuits", for the circuits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.solvers.objective import Names, Objective, Occurrence
from merge.errors import AlignmentError
from merge.symmetry.permutation import Permutation

# Of all pairs of blocks of a and b, of a's with themselves, of b's with themselves.
Three = tuple[Tensor, Tensor, Tensor]


def circuit_gains(objective: Objective, coordinate: str, p: Permutation) -> dict[Names, Tensor]:
    """Return gains of pairs of blocks, as `match_blocks` takes them, that do not depend on the bases inside.

    By the names of the levels outside the basis: (blocks,), or (blocks, middle) where query heads read in groups.

    Raises:
        AlignmentError: no order inside these blocks has rows of both roles.
    """
    rows: dict[tuple[Names, str], list[Occurrence]] = {}
    for occurrence in objective.occurrences[coordinate]:
        names, role = occurrence.view.names, occurrence.view.role
        if _is_basis(names) and occurrence.alone and role == "in":
            continue  # softmax cancels what a key bias adds
        rows.setdefault((names, role if _is_basis(names) else ""), []).append(occurrence)
    parts: list[tuple[Names, Tensor]] = []
    for (outs, out_role), (ins, in_role) in product(rows, rows):
        if (out_role, in_role) == ("out", "in") and outs[-1] == ins[-1]:
            pair = (_three(objective, rows[outs, "out"], p), _three(objective, rows[ins, "in"], p))
            parts.append((max(outs, ins, key=len)[:-1], _circuits(*pair)))
    if not parts:
        raise AlignmentError(
            f'no circuit runs through axis "{coordinate}": the spec has no order inside it with rows of roles out and in (\').'
            " Match heads by rows."
        )
    for names, role in rows:
        if not role:
            traces = (_trace(x, len(names)) for x in _three(objective, rows[names, role], p))
            parts.append((names[:-1] or names if names[-1] == "-" else names, _cosine(*traces)))
    total: dict[Names, Tensor] = {}
    for levels, gain in parts:
        total[levels] = total[levels] + gain if levels in total else gain
    return total


def _is_basis(names: Names) -> bool:
    return len(names) > 1 and names[-1] != "-"


def _three(objective: Objective, group: Sequence[Occurrence], p: Permutation) -> Three:
    """Return the products of rows, added up over tensors that are scaled to a root mean square of 1."""
    total: list[Tensor] = []
    for occurrence in group:
        shape, scales = occurrence.view.shape, (objective.weights.scale_a, objective.weights.scale_b)
        a, b = (
            (objective.rows(occurrence, side, moved) * scale[occurrence.tensor]).unflatten(0, shape)
            for side, moved, scale in zip("ab", (None, p), scales, strict=True)
        )
        products = (_across(a, b), _own(a), _own(b))
        total = [x + y for x, y in zip(total, products, strict=True)] if total else list(products)
    return total[0], total[1], total[2]


def _across(a: Tensor, b: Tensor) -> Tensor:
    """Return the products of all rows of a with all of b, the levels of a first; float64."""
    return (a.flatten(0, -2) @ b.flatten(0, -2).T).double().reshape(*a.shape[:-1], *b.shape[:-1])


def _own(rows: Float[Tensor, "blocks ... d"]) -> Tensor:
    """Return the products of the rows of every block with each other: the block, its levels, its levels again."""
    flat = rows.flatten(1, -2) if rows.ndim > 2 else rows[:, None]
    return (flat @ flat.mT).double().reshape(len(rows), *rows.shape[1:-1], *rows.shape[1:-1])


def _circuits(outs: Three, ins: Three) -> Tensor:
    """Return the cosines of circuits from the products of their rows, where one side may have a level in the middle."""
    few, many = sorted((outs, ins), key=lambda three: three[0].ndim)
    if many[0].ndim == 4:
        own = [torch.einsum("gij,gij->g", x, y) for x, y in zip(few[1:], many[1:], strict=True)]
        return _cosine(torch.einsum("gihj,gihj->gh", few[0], many[0]), *own)
    own = [torch.einsum("gij,gijq->gq", x, y.diagonal(0, 1, 3)) for x, y in zip(few[1:], many[1:], strict=True)]
    return _cosine(torch.einsum("gihj,gqihpj->gqhp", few[0], many[0]), *own)


def _trace(products: Tensor, levels: int) -> Tensor:
    """Return the products of rows at equal positions of the innermost level, added up; blocks alone have no such level."""
    if levels == 1:
        return products
    across = products.ndim == 2 * levels
    forms = {2: ("gii->g", "gihi->gh"), 3: ("gqiqi->gq", "gqihpi->gqhp")}
    return torch.einsum(forms[levels][across], products)


def _cosine(across: Tensor, own_a: Tensor, own_b: Tensor) -> Tensor:
    """Return products over the roots of those of each with itself; 0 where these are 0."""
    squares = torch.outer(own_a.reshape(-1), own_b.reshape(-1)).reshape(across.shape)
    return across * torch.where(squares > 0, squares.clamp_min(0).rsqrt(), 0.0)
