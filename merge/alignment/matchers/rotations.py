"""Rotations: matching with maps behind the permutation, by weights or by activations.

With `--basis orthogonal` every group of the spec is used: inside heads rotations, after both models' heads are balanced;
phases of rotary pairs; signs where a function is odd. With `--residual rotation` the stream itself turns. All in closed
form, one axis at a time, everything else held:

    weights               J of `solvers.descent_with_maps`: the stream first, on embeddings and output head, then heads,
                          feed-forward units and the stream in turn until a sweep hardly gains
    activations           every axis on its own: cross-covariances of what its units say to the same text
    activations+weights   sweeps by weights that begin where activations end

Sources: Schoenemann 1966 (Procrustes); Theus et al. 2025, arXiv:2506.22712 (rotating the stream of a model without gains;
here LayerNorm stays LayerNorm); Zhang et al. 2025, arXiv:2502.00264 (bases inside heads).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.masking import with_masked_words
from merge.alignment.midpoint import EndpointOutputs, score
from merge.alignment.pair import Alignment, Matcher, Pair, check_kinds, check_text
from merge.alignment.solvers.balance import balance
from merge.alignment.solvers.blocks_with_maps import Slot, match_coordinate
from merge.alignment.solvers.descent import best_of_restarts, coordinate_descent
from merge.alignment.solvers.descent_with_maps import MappedDescent, acting_groups
from merge.alignment.solvers.moments import CrossMoments, check_seen, collect, level_names, level_sizes
from merge.progress import shown_by, silent, track
from merge.symmetry.maps import is_matrix
from merge.symmetry.permutation import Permutation, identity
from merge.symmetry.transform import Transform, apply_transform, compose, inverse

MAX_SWEEPS = 15
# A map that differs from the identity by less is rounding.
MAP_TOLERANCE = 1e-9
# Groups whose elements mix units, so that no unit has a spread of its own.
MIXING_GROUPS = frozenset({"linear", "orthogonal", "orthogonal_one", "rotary", "rotary_adjacent"})


def rotate_by_weights(pair: Pair) -> Matcher:
    """Return the matcher that aligns b to a by weights alone, with maps."""
    return lambda kinds: match_by_sweeps(pair, kinds, None)


def rotate_by_activations(pair: Pair) -> Matcher:
    """Return the matcher that aligns b to a by activations alone, with maps.

    Raises:
        AlignmentError: there are no batches.
    """
    check_text(pair, "activation matching")

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        return _alignment(pair, kinds, *match_balanced(pair, kinds))

    return match


def rotate_by_both(pair: Pair) -> Matcher:
    """Return the matcher that begins with activations and goes on with weights.

    Raises:
        AlignmentError: there are no batches.
    """
    check_text(pair, "activation matching")

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        return match_by_sweeps(pair, kinds, match_balanced(pair, kinds)[0])

    return match


def _alignment(pair: Pair, kinds: frozenset[str], found: Transform, values: tuple[float, ...]) -> Alignment:
    maps = {axis: mapped for axis, mapped in found.maps.items() if not _is_identity(axis, mapped, found.permutation)}
    return Alignment(found.permutation, tuple(k for k in pair.kinds() if k in kinds), values, maps)


def _is_identity(axis: str, mapped: Tensor, p: Permutation) -> bool:
    one = torch.eye(mapped.shape[-1], dtype=mapped.dtype) if is_matrix(axis, mapped, p) else torch.ones_like(mapped)
    return bool((mapped - one).abs().max() < MAP_TOLERANCE)


def match_by_sweeps(pair: Pair, kinds: frozenset[str], start: Transform | None) -> Alignment:
    """Return where sweeps end that begin at the better of a start and what is there; then of as many restarts as asked for.

    Restarts are told apart by what the model half way says to the pair's text; without text by J, which hardly can: where
    it is as good as equal, one barrier may be a third lower than another.

    Args:
        start: of the sweeps; if None, a first pass, in which each axis is matched against what is already matched:
            embeddings fix the residual, that the layers.
    """
    check_kinds(pair, kinds)
    nothing = MappedDescent(pair, kinds)
    begun = MappedDescent(pair, kinds, start) if start is not None else _first_pass(MappedDescent(pair, kinds))
    still = nothing.value
    best = begun if begun.value > still else nothing
    history = (still, *_sweeps(best, nothing.coordinates))
    if pair.settings.restarts:
        best, value = (_best_by_text if pair.batches else _best_by_objective)(pair, kinds, best)
        history = history if value == history[-1] else (history[0], value)
    return _alignment(pair, kinds, best.transform, history)


def _best_by_objective(pair: Pair, kinds: frozenset[str], best: MappedDescent) -> tuple[MappedDescent, float]:
    """Return the restart with the highest J: each from the best so far with a part of it shuffled."""
    generator = torch.Generator().manual_seed(pair.settings.seed)

    def attempt(best: MappedDescent, order: Sequence[str]) -> tuple[MappedDescent, float]:
        frame = MappedDescent(pair, kinds, best.shuffled(generator))
        return frame, _sweeps(frame, order)[-1]

    return best_of_restarts((best, best.value), best.coordinates, pair.settings.restarts, generator, attempt)


def _best_by_text(pair: Pair, kinds: frozenset[str], best: MappedDescent) -> tuple[MappedDescent, float]:
    """Return the restart whose model half way is nearest to what both ends say, `merge.alignment.midpoint`.

    Each begins where sweeps end that come from the best so far and see every tensor at another, random scale. Heard are the
    weights as they are merged, whatever form they are matched in.
    """
    heard, nothing = with_masked_words(pair.as_merged), MappedDescent(pair, kinds).value
    ends, generator = EndpointOutputs(heard), torch.Generator().manual_seed(pair.settings.seed)
    lowest = _quietly_scored(best, heard, ends)
    for _ in track(range(pair.settings.restarts), "restarting"):
        begun = MappedDescent(with_random_scales(pair, generator), kinds, best.transform)
        _sweeps(begun, best.coordinates)
        tried = MappedDescent(pair, kinds, begun.transform)
        _sweeps(tried, best.coordinates)
        found = _quietly_scored(tried, heard, ends)
        if found < lowest and tried.value >= nothing:
            best, lowest = tried, found
    return best, best.value


def _quietly_scored(frame: MappedDescent, pair: Pair, ends: EndpointOutputs) -> float:
    """Return the midpoint score of one frame's steps, with no display of its own."""
    with shown_by(silent):
        return score([frame.transform], pair, ends)[0][0]


def with_random_scales(pair: Pair, generator: torch.Generator) -> Pair:
    """Return the pair with each tensor of both models times the same random factor, log-normal with a spread of one."""
    factors = {name: math.exp(float(torch.randn((), generator=generator))) for name in pair.a}
    a, b = (
        {name: tensor * factors[name] if tensor.is_floating_point() else tensor for name, tensor in side.items()}
        for side in (pair.a, pair.b)
    )
    return replace(pair, a=a, b=b)


def _sweeps(frame: MappedDescent, order: Sequence[str]) -> tuple[float, ...]:
    """Move a frame to where sweeps end; return J at its start and after each."""
    return coordinate_descent(frame, order, MAX_SWEEPS)


def _first_pass(frame: MappedDescent) -> MappedDescent:
    matched: frozenset[str] = frozenset()
    for move in frame.coordinates:
        frame.improve(move, matched)
        matched |= frame.axes_of(move)
    return frame


def match_balanced(pair: Pair, kinds: frozenset[str]) -> tuple[Transform, tuple[float, float]]:
    """Return what brings b to a by what units say to the same text, and how alike units are in their places and there.

    Both models are balanced first. Units that may only change places are told apart by correlation; those that may be
    rotated by covariance, in units of the mean variance of their block.

    Raises:
        AlignmentError: no activation shows an axis.
    """
    groups, still = acting_groups(pair, kinds), identity(pair.spec, pair.shapes)
    to_a, to_b = (balance(pair.spec, side, groups, still) for side in (pair.a, pair.b))
    a, b = (apply_transform(pair.spec, t, side) for t, side in ((to_a, pair.a), (to_b, pair.b)))
    indices, maps, units = dict(still.indices), dict[str, Tensor](), 0
    before = after = 0.0
    for move, gains in _gains(replace(pair, a=a, b=b), kinds, groups):
        found = match_coordinate(move, gains, groups)
        indices |= {axis: index for axis, index in found.indices.items() if axis in still.indices}
        maps |= found.maps
        squares = [gain.flatten(gain.ndim // 2).flatten(0, -2) for gain in gains.values()]
        before += sum(float(square.trace()) for square in squares)
        after += found.worth
        units += sum(len(square) for square in squares)
    steps = Transform(Permutation(indices, still.outer), maps)
    return compose(inverse(to_a), compose(steps, to_b)), (before / max(units, 1), after / max(units, 1))


def _gains(
    pair: Pair, kinds: frozenset[str], groups: Mapping[str, str]
) -> Iterator[tuple[str, dict[Slot, Float[Tensor, ...]]]]:
    """Yield (move, slot -> how alike units of a and of b respond, averaged over the sites of the slot), move by move."""
    collected, movable = collect(pair), pair.axes_of(kinds)
    counts = {axis: shape[-1] for axis, shape in pair.spec.fit(pair.shapes).items()}
    moves: dict[str, list[str]] = {}
    for line in collected:
        if (move := level_names(line)[0][0]) in movable:
            moves.setdefault(move, []).append(line)
    check_seen(movable, {move: {level_names(line)[0] for line in own} for move, own in moves.items()})
    for move, own in moves.items():
        found: dict[Slot, Tensor] = {}
        for line in own:
            (names, axis), sites = level_names(line), collected.pop(line)  # let go of as soon as they are used
            count, shape = len(sites), level_sizes(names, counts, sites[0].cross.shape[0])
            likeness = _covariance if groups.get(axis) in MIXING_GROUPS else _correlation
            gains = likeness(sites.pop(0), shape)
            while sites:
                gains += likeness(sites.pop(0), shape)
            found[names, axis if axis in groups else ""] = gains / count
        yield move, found


def _correlation(site: CrossMoments, shape: tuple[int, ...]) -> Tensor:
    return site.correlation().reshape(*shape, *shape)


def _covariance(site: CrossMoments, shape: tuple[int, ...]) -> Tensor:
    """Return covariances over the root of the mean variances of the blocks they are of."""
    covariance, *spread = site.covariance()
    means = [variance.reshape(shape).mean(-1, keepdim=True).expand(shape).reshape(-1) for variance in spread]
    one, other = (torch.where(mean > 0, mean, torch.inf).rsqrt() for mean in means)
    return (covariance * one[:, None] * other).reshape(*shape, *shape)
