"""A map between the states of two models: its numbers, how it acts, and its closed form from streamed sums.

    scale          w_i = cov(x_i, y_i) / var(x_i)
    permutation    argmax_P sum_i <y_i, x_P(i)>, exactly (Hungarian algorithm)
    orthogonal     U V^T of cov(x, y) = U S V^T
    affine         ridge least squares, pulled towards c * the orthogonal map with the best factor c
    low-rank       the affine map onto the first principal directions of what it predicts (reduced rank regression)

with x a state of the bottom model and y the state of the top model at the same token. The constant is the mean of y less that
of x W, but for the permutation, which has none. Each is the least-squares solution inside its family (the low-rank one where
the ridge is small).

Sources: Schoenemann 1966 (orthogonal); Izenman 1975, doi:10.1016/0047-259X(75)90042-1 (reduced rank regression).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.solvers.assignment import match_axis
from merge.alignment.solvers.procrustes import orthogonal, rotation_fixing_ones
from merge.errors import CalibrationError, UsageError
from merge.layers.repair.ridge import NormalEquations, fit

# Maps that are known only once there are as many tokens as units.
FULL = ("orthogonal", "low-rank", "affine", "affine+norm")


@dataclass(frozen=True)
class Norm:
    """The norm that wrote a state: gain and bias of a LayerNorm.

    Attributes:
        gain: no unit is near 0.
    """

    gain: Float[Tensor, " units"]
    bias: Float[Tensor, " units"]
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, self.gain.shape, self.gain, self.bias, self.epsilon)


@dataclass(frozen=True)
class StateMap:
    """A fitted map x W + c, followed by a norm where there is one.

    Attributes:
        kind: a key of `merge.layers.stitching.kinds.MAPS`.
        weight: W, shape (units of x, units of y), float64.
        constant: c.
        norm: of the state that the top model reads, which the map ends in.
        tokens: how many it was fitted on.
        explained: R2 of x W + c on them; None for the identity.
        ridge: of the fit, where it has one.
        order: of a permutation: unit i of y is unit order[i] of x.
    """

    kind: str
    weight: Float[Tensor, "features targets"]
    constant: Float[Tensor, " targets"]
    norm: Norm | None = None
    tokens: int = 0
    explained: float | None = None
    ridge: float | None = None
    order: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the mapped states, in the dtype of x; any axes before the units."""
        mapped = x @ self.weight.to(x.dtype) + self.constant.to(x.dtype)
        return mapped if self.norm is None else self.norm(mapped)


def identity_map(features: int, targets: int) -> StateMap:
    """Return the map that changes nothing.

    Raises:
        UsageError: the states are of different widths.
    """
    if features != targets:
        raise UsageError(
            f"--map identity needs states of one width; the bottom model has {features} units, the top one {targets}."
        )
    return StateMap("identity", torch.eye(features, dtype=torch.float64), torch.zeros(targets, dtype=torch.float64))


def mean_map(equations: NormalEquations) -> StateMap:
    """Return the map that gives every token the mean state: what a stitch scores that passes nothing on."""
    features = len(equations.xx) - 1
    return StateMap(
        "mean",
        torch.zeros(features, equations.xy.shape[1], dtype=torch.float64),
        equations.y / max(equations.rows, 1),
        tokens=equations.rows,
    )


def fit_map(
    kind: str,
    fitting: NormalEquations,
    held: NormalEquations,
    ridges: Sequence[float],
    rank: int | None = None,
    start: Float[Tensor, "weights targets"] | None = None,
) -> StateMap:
    """Return the map of a kind from sums over tokens; each has a constant as its last feature.

    Args:
        held: sums over held-out tokens, which choose the ridge where there are several; they are fitted too in the end.
        rank: of a low-rank map; an eighth of the units when None.
        start: what an affine fit is pulled towards, the constant as the last row; the best rotation when None.
    Raises:
        UsageError: the kind needs states of one width, or the rank is too large.
        CalibrationError: there are too few tokens; the message says how many are needed.
    """
    whole = fitting + held
    features, targets = len(whole.xx) - 1, whole.xy.shape[1]
    if kind == "identity":
        return identity_map(features, targets)
    check_tokens(kind, whole.rows, features)
    if kind in ("scale", "permutation") and features != targets:
        raise UsageError(
            f"--map {kind} needs states of one width; the bottom model has {features} units, the top one {targets}. Use "
            "orthogonal, low-rank or affine."
        )
    if kind in CLOSED:
        return CLOSED[kind](whole)
    solved = fit(fitting, held, best_rotation(whole) if start is None else start, ridges)
    weight, constant = solved.weights[:-1], solved.weights[-1]
    if kind == "low-rank":
        weight, constant = _reduced(whole, weight, rank_of(rank, features, targets))
    made = _made(kind, whole, weight, constant)
    return replace(made, ridge=solved.ridge)


def check_tokens(kind: str, tokens: int, units: int) -> None:
    """Stop where the text is too short for a map.

    Raises:
        CalibrationError: says how many tokens are needed.
    """
    least = units if kind in FULL else 2
    if tokens < least:
        why = "as many as the stream has units" if kind in FULL else "to have a spread"
        raise CalibrationError(
            f"the map {kind} needs text of at least {least} tokens, {why}, found {tokens}. Give a longer --text, or more "
            "--samples."
        )


def rank_of(rank: int | None, features: int, targets: int) -> int:
    """Return the rank of a low-rank map.

    Raises:
        UsageError: it is not below the width.
    """
    most = min(features, targets)
    chosen = max(most // 8, 1) if rank is None else rank
    if not 1 <= chosen < max(most, 2):
        raise UsageError(
            f"--rank {chosen}: a low-rank map between {features} and {targets} units has rank 1 to {most - 1}."
        )
    return chosen


def _centred(e: NormalEquations) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the covariances of x with itself and with y, times the number of rows, and both means."""
    x, y = e.xx[-1, :-1] / e.rows, e.y / e.rows
    return e.xx[:-1, :-1] - e.rows * torch.outer(x, x), e.xy[:-1] - e.rows * torch.outer(x, y), x, y


def _made(kind: str, e: NormalEquations, weight: Tensor, constant: Tensor, order: Tensor | None = None) -> StateMap:
    explained = e.explained(torch.cat([weight, constant[None]]))
    return StateMap(kind, weight, constant, tokens=e.rows, explained=explained, order=order)


def _scale(e: NormalEquations) -> StateMap:
    xx, xy, x, y = _centred(e)
    spread = xx.diagonal()
    least = 1e-12 * spread.mean()
    factor = torch.where(spread > least, xy.diagonal() / spread.clamp_min(least), 0.0)
    return _made("scale", e, torch.diag(factor), y - factor * x)


def _permutation(e: NormalEquations) -> StateMap:
    order = match_axis(e.xy[:-1].T.contiguous())
    weight = torch.zeros(e.xy.shape[1], e.xy.shape[1], dtype=torch.float64)
    weight[order, torch.arange(len(order))] = 1.0
    return _made("permutation", e, weight, torch.zeros(len(order), dtype=torch.float64), order)


def _orthogonal(e: NormalEquations) -> StateMap:
    _, xy, x, y = _centred(e)
    weight = _rotation(xy)
    return _made("orthogonal", e, weight, y - x @ weight)


def fit_rotation(sums: NormalEquations, fixes_ones: bool) -> StateMap:
    """Return the best rotation without a constant, for a stream that is rotated as a whole.

    Args:
        fixes_ones: whether it must map the vector of ones to itself, as a LayerNorm without gain asks for.
    """
    check_tokens("orthogonal", sums.rows, len(sums.xx) - 1)
    cross = sums.xy[:-1]
    weight = rotation_fixing_ones(cross.T).T if fixes_ones else orthogonal(cross)
    return _made("orthogonal", sums, weight.contiguous(), torch.zeros(weight.shape[1], dtype=torch.float64))


def _rotation(cross: Tensor) -> Tensor:
    """Return the matrix with orthonormal rows or columns that has the largest product with another."""
    if cross.shape[0] == cross.shape[1]:
        return orthogonal(cross)
    left, _, right = torch.linalg.svd(cross, full_matrices=False)
    return left @ right


CLOSED: dict[str, Callable[[NormalEquations], StateMap]] = {
    "scale": _scale,
    "permutation": _permutation,
    "orthogonal": _orthogonal,
}


def best_rotation(e: NormalEquations) -> Float[Tensor, "weights targets"]:
    """Return the best rotation times the best factor, and below it the constant that goes with it."""
    xx, xy, x, y = _centred(e)
    rotation = _rotation(xy)
    size = float((rotation * (xx @ rotation)).sum())
    scaled = rotation * (float((rotation * xy).sum()) / size if size > 0 else 1.0)
    return torch.cat([scaled, (y - x @ scaled)[None]])


def _reduced(e: NormalEquations, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the map onto the first principal directions of what another predicts."""
    xx, _, x, y = _centred(e)
    directions = torch.linalg.eigh(weight.T @ xx @ weight).eigenvectors[:, -rank:]
    reduced = weight @ directions @ directions.T
    return reduced, y - x @ reduced
