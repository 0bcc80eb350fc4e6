"""Rotations: matching with maps behind the permutation, by weights or by activations.

With `--basis orthogonal` every group of the spec is used: inside heads rotations, after both models' heads are balanced;
phases of rotary pairs; signs where a function is odd. With `--residual rotation` the stream itself turns. All in closed
form, one axis at a time, everything else held:

    weights       J of `merge.alignment.frame`: the stream first, on embeddings and output head, then heads, feed-forward
                  units and the stream in turn until a sweep hardly gains
    activations   every axis on its own: cross-covariances of what its units say to the same text

Sources: Schoenemann 1966 (Procrustes); Theus et al. 2025, arXiv:2506.22712 (rotating the stream of a model without gains;
here LayerNorm stays LayerNorm); Zhang et al. 2025, arXiv:2502.00264 (bases inside heads).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from merge.alignment.activations import Moments, check_seen, collect
from merge.alignment.frame import Balanced, Frame
from merge.alignment.pair import Alignment, Matcher, Pair, check_kinds
from merge.alignment.turned_blocks import Slot, match_move
from merge.permutation import Permutation, identity
from merge.transform import Transform

MAX_SWEEPS = 15
# Sweeps end when one gains less than this share of J.
ENOUGH = 1e-6
# Groups whose elements mix units, so that no unit has a spread of its own.
TURNING = frozenset({"linear", "orthogonal", "orthogonal_one", "rotary", "rotary_adjacent"})


def rotate_by_weights(pair: Pair, by: str | None = None) -> Matcher:
    """Return the matcher that aligns b to a by weights alone, with maps.

    Args:
        by: `activations`, to begin from what they say.
    """

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        balanced = Balanced(pair, kinds)
        steps = None if by is None else steps_by_activations(balanced)[0]
        return descend(balanced, kinds, steps)

    return match


def rotate_by_activations(pair: Pair) -> Matcher:
    """Return the matcher that aligns b to a by activations alone, with maps."""

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        balanced = Balanced(pair, kinds)
        steps, values = steps_by_activations(balanced)
        return _alignment(balanced, kinds, steps, values)

    return match


def _alignment(
    balanced: Balanced, kinds: frozenset[str], steps: Transform, values: tuple[float, ...]
) -> Alignment:
    found = balanced.whole(steps)
    return Alignment(found.permutation, tuple(k for k in balanced.pair.kinds() if k in kinds), values, found.maps)


def descend(balanced: Balanced, kinds: frozenset[str], steps: Transform | None = None) -> Alignment:
    """Return where sweeps end that begin at the better of a start and what is there: without steps, a first pass."""
    nothing = Frame(balanced)
    frame = Frame(balanced, steps) if steps is not None else first_pass(balanced)
    if frame.value < nothing.value:
        frame, nothing = nothing, nothing
    history = [nothing.value, frame.value]
    for _ in range(MAX_SWEEPS):
        moved = [frame.improve(move) for move in frame.moves]
        if not any(moved):
            break
        history.append(frame.value)
        if history[-1] - history[-2] < ENOUGH * abs(history[-2]):
            break
    return _alignment(balanced, kinds, frame.steps, tuple(history))


def first_pass(balanced: Balanced) -> Frame:
    """Match each axis in turn against what is already matched: embeddings fix the residual, that the layers."""
    frame, matched = Frame(balanced), set[str]()
    for move in frame.moves:
        frame.improve(move, matched)
        matched |= set(frame.axes_of(move))
    return frame


def steps_by_activations(balanced: Balanced) -> tuple[Transform, tuple[float, float]]:
    """Return the best steps by what units say to the same text, and how alike units are before and after.

    Units that may only change places are told apart by correlation; those that may be rotated by covariance, in units of
    the mean variance of their block.
    """
    pair, still = balanced.pair, identity(balanced.pair.spec, balanced.pair.shapes)
    moves = _gains_by_activations(balanced)
    indices, maps, units = dict(still.indices), dict[str, Tensor](), 0
    before = after = 0.0
    for move, gains in moves.items():
        found = match_move(move, gains, balanced.groups)
        indices |= {axis: index for axis, index in found.indices.items() if axis in still.indices}
        maps |= found.maps
        squares = [gain.flatten(gain.ndim // 2).flatten(0, -2) for gain in gains.values()]
        before += sum(float(square.trace()) for square in squares)
        after += found.worth
        units += sum(len(square) for square in squares)
    return Transform(Permutation(indices, still.outer), maps), (before / max(units, 1), after / max(units, 1))


def _gains_by_activations(balanced: Balanced) -> dict[str, dict[Slot, Tensor]]:
    """Return move -> slot -> how alike units of a and of b respond, averaged over the sites of the slot."""
    pair, found = balanced.pair, dict[str, dict[Slot, Tensor]]()
    counts = {axis: shape[-1] for axis, shape in pair.spec.fit(pair.shapes).items()}
    acting = _acting(balanced)
    for line, sites in collect(pair).items():
        names = tuple(line.split())
        if names[0] not in balanced.movable:
            continue
        axis = acting.get(names, "")
        total = sites[0].cross.shape[0]
        rest = total // math.prod(counts[name] for name in names if name != "-")
        shape = tuple(counts.get(name, rest) for name in names)
        likeness = _covariance if balanced.groups.get(axis) in TURNING else _correlation
        gains = torch.stack([likeness(site, shape) for site in sites]).mean(0)
        found.setdefault(names[0], {})[names, axis] = gains
    check_seen(balanced.movable, {move: {names: g for (names, _), g in own.items()} for move, own in found.items()})
    return found


def _acting(balanced: Balanced) -> dict[tuple[str, ...], str]:
    """Return the names of a view's levels -> the axis whose maps act on the innermost, as the tensors have it."""
    pair, found = balanced.pair, dict[tuple[str, ...], str]()
    for name, shape in pair.shapes.items():
        for view in (view for along in pair.spec.views(name, shape) for view in along):
            if view.role != "=" and view.acting in balanced.groups:
                found[view.names] = view.acting
    return found


def _correlation(site: Moments, shape: tuple[int, ...]) -> Tensor:
    return site.correlation().reshape(*shape, *shape)


def _covariance(site: Moments, shape: tuple[int, ...]) -> Tensor:
    """Return covariances over the root of the mean variances of the blocks they are of."""
    covariance, *spread = site.covariance()
    means = [variance.reshape(shape).mean(-1, keepdim=True).expand(shape).reshape(-1) for variance in spread]
    one, other = (torch.where(mean > 0, mean, torch.inf).rsqrt() for mean in means)
    return (covariance * one[:, None] * other).reshape(*shape, *shape)
