"""Gradient descent on soft permutations, through the Sinkhorn operator that makes any matrix doubly stochastic.

Every axis has free parameters Z. The soft permutation M = Sinkhorn(Z / temperature), rows and columns of exp(Z /
temperature) normalised to sum one in turn, in logarithms, is applied to b, and Adam minimises the distance of the weights

    L(Z) = sum_t || A_t / rms(A_t) - M_1 (B_t / rms(B_t)) M_2^T ||^2

while the temperature falls, so that M approaches a permutation. Along the way M is rounded by an assignment on its entries;
the best of those and of weight matching, which it starts near, is kept. It reads no text.

Function-preserving: the result is a permutation. (Soft permutations change the function; they are never in the result.)

Source: Pena et al. 2023, arXiv:2212.12042 (with gradients through the iterations instead of implicit ones).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.matchers.frank_wolfe import rounded
from merge.alignment.matchers.weights import match_weights
from merge.alignment.pair import Alignment, Matcher, Pair, check_kinds
from merge.alignment.solvers.objective import Objective, weights_of
from merge.alignment.solvers.soft import Names, Relaxation, Soft, mixed
from merge.errors import AlignmentError
from merge.progress import track
from merge.symmetry.permutation import Permutation, identity

# Units of the largest axis: every step holds the products of NORMALISATIONS normalisations of a matrix over them.
MAX_UNITS = 1024
NORMALISATIONS = 10
LEARNING_RATE = 0.05
# Z at the start of the pairs of units that weight matching makes; 0 for all others.
INIT_LOGIT = 1.0
T_START, T_END = 1.0, 0.1
# How often in a run the soft permutation is rounded, and after how many equal results it stops.
CHECKS, PATIENCE = 20, 4
REL_TOLERANCE, EQUAL_MODELS = 1e-6, 1 - 1e-6

# Axis -> parameters: (n, n), or (blocks, blocks, n, n) inside blocks, for every pair of them.
Parameters = Mapping[str, Tensor]


def match_sinkhorn(pair: Pair) -> Matcher:
    """Return the matcher that aligns b to a by gradient descent on soft permutations; never worse than `weights`.

    Raises:
        AlignmentError: an axis is too large for it.
    """
    weights, plain = weights_of(pair), match_weights(pair)

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        objective = Objective(pair, weights, pair.axes_of(kinds))
        relaxed = Relaxation(objective)
        _check_size(relaxed)
        by_weights = plain(kinds)
        if by_weights.objective[-1] > EQUAL_MODELS or not objective.tensor_names:
            return by_weights
        permutation, value = descended(relaxed, pair, by_weights.permutation)
        if value <= by_weights.objective[-1] + REL_TOLERANCE * abs(by_weights.objective[-1]):
            return by_weights
        return Alignment(permutation, by_weights.kinds, (*by_weights.objective, value))

    return match


def _check_size(relaxed: Relaxation) -> None:
    for names, view in relaxed.views.items():
        units = math.prod(view.shape)
        if units > MAX_UNITS:
            raise AlignmentError(
                f"sinkhorn takes axes of up to {MAX_UNITS} units; axis {names[0]!r} has {units}, and each of its steps would "
                f"hold {NORMALISATIONS * 2 * units * units * 4 / 1e9:.1f} GB for it. Use --align frank-wolfe."
            )


def descended(relaxed: Relaxation, pair: Pair, start: Permutation | None) -> tuple[Permutation, float]:
    """Return the best rounded permutation of the descent, and its objective in [-1, 1].

    Args:
        start: that the parameters favour; None for the barycentre.
    """
    objective, unmoved = relaxed.objective, identity(pair.spec, pair.shapes)
    parameters = _origin(relaxed, unmoved, start)
    optimiser = torch.optim.Adam(list(parameters.values()), lr=LEARNING_RATE)
    steps, best, value = pair.settings.steps, unmoved, -math.inf
    every, repeats = max(1, steps // CHECKS), 0
    for step in track(range(steps), "descending on soft permutations"):
        soft = soft_at(relaxed, parameters, T_START * (T_END / T_START) ** (step / max(steps - 1, 1)))
        optimiser.zero_grad()
        distance(relaxed, soft).backward()
        optimiser.step()
        if (step + 1) % every and step + 1 < steps:
            continue
        candidate = rounded(relaxed, {names: matrix.detach() for names, matrix in soft.items()}, unmoved)
        reached = sum(objective.terms(objective.tensor_names, candidate).values()) / objective.entries
        repeats = repeats + 1 if reached == value else 0
        if reached > value:
            best, value = candidate, reached
        elif repeats == PATIENCE:
            break
    return best, value


def _origin(relaxed: Relaxation, unmoved: Permutation, start: Permutation | None) -> Parameters:
    """Return parameters for every axis that the views name, favouring the start."""
    names = dict.fromkeys(name for view_names in relaxed.views for name in view_names if name != "-")
    parameters = {}
    for name in names:
        index = (start or unmoved).indices[name]
        size = index.shape[-1]
        logits = INIT_LOGIT * torch.nn.functional.one_hot(index, size).to(relaxed.dtype) * (start is not None)
        if index.ndim > 1:
            logits = logits[:, None].expand(len(index), len(index), size, size)
        parameters[name] = logits.clone().requires_grad_()
    return parameters


def soft_at(relaxed: Relaxation, parameters: Parameters, temperature: float) -> Soft:
    """Return the soft permutation of these parameters; entries of blocks scale those inside each pair of blocks."""
    factors = {name: sinkhorn(z / temperature, NORMALISATIONS) for name, z in parameters.items()}
    return {names: _product(names, view.shape, factors) for names, view in relaxed.views.items()}


def _product(names: Names, shape: tuple[int, ...], factors: Parameters) -> Float[Tensor, "units units"]:
    out = factors[names[0]]
    for level, name in enumerate(names[1:], 1):
        size = shape[level]
        inside = (
            torch.eye(size, dtype=out.dtype).expand(shape[0], shape[0], size, size) if name == "-" else factors[name]
        )
        # An entry (g, h) of the blocks scales everything inside their pair.
        between = math.prod(shape[1:level])
        out = torch.einsum("gqhp,ghij->gqihpj", out.reshape(shape[0], between, shape[0], between), inside)
    units = math.prod(shape)
    return out.reshape(units, units)


def sinkhorn(scores: Float[Tensor, "*batch n n"], rounds: int) -> Float[Tensor, "*batch n n"]:
    """Return exp(scores) after its rows and its columns were scaled to sum one, in turn; in logarithms."""
    for _ in range(rounds):
        scores = scores - scores.logsumexp(-1, keepdim=True)
        scores = scores - scores.logsumexp(-2, keepdim=True)
    return scores.exp()


def distance(relaxed: Relaxation, soft: Soft) -> Tensor:
    """Return the squared distance of a's weights to b's under a soft permutation, tensors at root mean square one.

    Divided by the number of entries: 2 for unrelated models, less what M averages away.
    """
    objective, total = relaxed.objective, torch.zeros(())
    weights = objective.weights
    for name in objective.tensor_names:
        a, b = weights.a[name] * weights.scale_a[name], weights.b[name] * weights.scale_b[name]
        moved = mixed(b.to(relaxed.dtype), relaxed.matrices(name, soft))
        total = total + (a.to(relaxed.dtype) - moved).square().sum()
    return total / objective.entries
