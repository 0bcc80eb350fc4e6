"""Matching with maps after the permutation: rotations inside heads and of the residual stream, phases, signs.

With `--basis orthogonal` every group of the spec is used: inside heads rotations, after both models' heads are balanced;
phases of rotary pairs; signs where a function is odd. With `--residual rotation` the residual stream is rotated too. All in
closed form, one axis at a time, everything else held:

    weights               J of `solvers.descent_with_maps`: the stream first, on embeddings and output head, then heads,
                          feed-forward units and the stream in turn until a sweep gains too little
    activations           every axis independently: cross-covariances of its units' activations on the same text
    activations+weights   sweeps by weights that start from the result of activations

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
from merge.alignment.solvers.balanced_moments import Similarity, balanced_similarities, relative_covariance
from merge.alignment.solvers.blocks_with_maps import Slot, match_coordinate
from merge.alignment.solvers.cross_moments import MIXING_GROUPS, CrossMoments
from merge.alignment.solvers.descent import best_of_restarts, coordinate_descent
from merge.alignment.solvers.descent_with_maps import MappedDescent, acting_groups
from merge.alignment.solvers.moments import check_seen, collect, level_names, level_sizes
from merge.alignment.solvers.silent import settle_silent
from merge.progress import shown_by, silent, track
from merge.symmetry.maps import is_matrix
from merge.symmetry.permutation import Permutation, identity
from merge.symmetry.transform import Transform, apply_transform, compose, inverse

# Fewer than without maps: a sweep with maps costs more, and the last ones gain little.
MAX_SWEEPS = 15
# A map whose entries differ from the identity's by less is rounding.
MAP_TOLERANCE = 1e-9


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
    """Return the matcher that starts from activations and goes on with weights, with maps.

    Raises:
        AlignmentError: there are no batches.
    """
    check_text(pair, "activation matching")

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        return match_by_sweeps(pair, kinds, match_balanced(pair, kinds)[0])

    return match


def _alignment(
    pair: Pair,
    kinds: frozenset[str],
    transform: Transform,
    values: tuple[float, ...],
    notes: tuple[str, ...] = (),
) -> Alignment:
    p = transform.permutation
    maps = {axis: mapped for axis, mapped in transform.maps.items() if not _is_identity(axis, mapped, p)}
    return Alignment(p, tuple(k for k in pair.kinds() if k in kinds), values, maps, notes=notes)


def _is_identity(axis: str, mapped: Tensor, p: Permutation) -> bool:
    unit = torch.eye(mapped.shape[-1], dtype=mapped.dtype) if is_matrix(axis, mapped, p) else torch.ones_like(mapped)
    return bool((mapped - unit).abs().max() < MAP_TOLERANCE)


def match_by_sweeps(pair: Pair, kinds: frozenset[str], start: Transform | None) -> Alignment:
    """Return the alignment after sweeps from the better of the identity and a start, the best of as many restarts as asked.

    Restarts are compared by the midpoint's score on the pair's text; without text by J, which hardly distinguishes them:
    where J is all but equal, one loss barrier may be a third lower than another.

    Args:
        start: of the sweeps; if None, a first pass, in which each axis is matched against those matched before it:
            embeddings order the residual, that the layers.
    """
    check_kinds(pair, kinds)
    unmoved = MappedDescent(pair, kinds)
    first = MappedDescent(pair, kinds, start) if start is not None else _first_pass(MappedDescent(pair, kinds))
    at_identity = unmoved.value
    best = first if first.value > at_identity else unmoved
    history = (at_identity, *_sweeps(best, unmoved.coordinates))
    if pair.settings.restarts:
        best, value = (_best_by_text if pair.batches else _best_by_objective)(pair, kinds, best)
        history = history if value == history[-1] else (history[0], value)
    return _alignment(pair, kinds, best.transform, history)


def _best_by_objective(pair: Pair, kinds: frozenset[str], first: MappedDescent) -> tuple[MappedDescent, float]:
    """Return the restart with the highest J: each from the best so far with some units shuffled."""
    generator = torch.Generator().manual_seed(pair.settings.seed)

    def attempt(best: MappedDescent, order: Sequence[str]) -> tuple[MappedDescent, float]:
        descent = MappedDescent(pair, kinds, best.shuffled(generator))
        return descent, _sweeps(descent, order)[-1]

    return best_of_restarts((first, first.value), first.coordinates, pair.settings.restarts, generator, attempt)


def _best_by_text(pair: Pair, kinds: frozenset[str], best: MappedDescent) -> tuple[MappedDescent, float]:
    """Return the restart whose midpoint is nearest to the endpoints' ensemble, `merge.alignment.midpoint`.

    Each starts where sweeps from the best so far end that compare every tensor at a random scale. Scored are the weights as
    they are merged, whatever form they are matched in.
    """
    scored, at_identity = with_masked_words(pair.as_merged), MappedDescent(pair, kinds).value
    endpoints, generator = EndpointOutputs(scored), torch.Generator().manual_seed(pair.settings.seed)
    lowest = _midpoint_score(best, scored, endpoints)
    for _ in track(range(pair.settings.restarts), "restarting"):
        disturbed = MappedDescent(with_random_scales(pair, generator), kinds, best.transform)
        _sweeps(disturbed, best.coordinates)
        descent = MappedDescent(pair, kinds, disturbed.transform)
        _sweeps(descent, best.coordinates)
        reached = _midpoint_score(descent, scored, endpoints)
        if reached < lowest and descent.value >= at_identity:
            best, lowest = descent, reached
    return best, best.value


def _midpoint_score(descent: MappedDescent, pair: Pair, endpoints: EndpointOutputs) -> float:
    """Return the midpoint's score under a descent's transform, with no progress display."""
    with shown_by(silent):
        return score([descent.transform], pair, endpoints)[0][0]


def with_random_scales(pair: Pair, generator: torch.Generator) -> Pair:
    """Return the pair with each tensor of both models times the same random factor, log-normal with a deviation of one."""
    factors = {name: math.exp(float(torch.randn((), generator=generator))) for name in pair.a}
    a, b = (
        {name: tensor * factors[name] if tensor.is_floating_point() else tensor for name, tensor in side.items()}
        for side in (pair.a, pair.b)
    )
    return replace(pair, a=a, b=b)


def _sweeps(descent: MappedDescent, order: Sequence[str]) -> tuple[float, ...]:
    """Sweep until a sweep gains too little; return J at the start and after each."""
    return coordinate_descent(descent, order, MAX_SWEEPS)


def _first_pass(descent: MappedDescent) -> MappedDescent:
    """Match each coordinate against those matched before it; return the descent."""
    matched: frozenset[str] = frozenset()
    for coordinate in descent.coordinates:
        descent.improve(coordinate, matched)
        matched |= descent.axes_of(coordinate)
    return descent


def match_balanced(pair: Pair, kinds: frozenset[str]) -> tuple[Transform, tuple[float, float], tuple[str, ...]]:
    """Return the transform that aligns b to a by activations on the same text, the mean similarity before and after it,
    and notes.

    Both models are balanced first. Units that are only permuted are compared by correlation; those that may be rotated by
    covariance, relative to the mean variance of their block.

    Raises:
        AlignmentError: no activation shows an axis.
    """
    return pair.once(("balanced", kinds, pair.settings.basis), lambda: _match_balanced(pair, kinds))


def _match_balanced(pair: Pair, kinds: frozenset[str]) -> tuple[Transform, tuple[float, float], tuple[str, ...]]:
    groups, unmoved = acting_groups(pair, kinds), identity(pair.spec, pair.shapes)
    balance_a, balance_b = (balance(pair.spec, side, groups, unmoved) for side in (pair.a, pair.b))
    a, b = (apply_transform(pair.spec, t, side) for t, side in ((balance_a, pair.a), (balance_b, pair.b)))
    indices, maps, units = dict(unmoved.indices), dict[str, Tensor](), 0
    balanced, plain = replace(pair, a=a, b=b), dict[str, Tensor]()
    before = after = 0.0
    shared = balanced_similarities(pair, balance_a, balance_b, groups) if pair.shared is not None else None
    lines = _similarities(balanced, groups) if shared is None else shared[1]
    for coordinate, gains in _gains(pair, lines, kinds, groups):
        matching = match_coordinate(coordinate, gains, groups)
        indices |= {axis: index for axis, index in matching.indices.items() if axis in unmoved.indices}
        maps |= matching.maps
        if len(gains) == 1 and next(iter(gains))[0] == (coordinate,) and groups.get(coordinate) not in MIXING_GROUPS:
            own = [line for line in lines if level_names(line)[0] == (coordinate,)]
            # Where others hold the correlations too, no second copy is kept.
            plain[coordinate] = next(iter(gains.values())) if shared is None else shared[0].lines[own[0]]
        before += sum(float(_diagonal(gain).sum()) for gain in gains.values())
        after += matching.score
        units += sum(math.prod(gain.shape[: gain.ndim // 2]) for gain in gains.values())
    permutation, notes = settle_silent(balanced, Permutation(indices, unmoved.outer), plain)
    rotation = Transform(permutation, maps)
    transform = compose(inverse(balance_a), compose(rotation, balance_b))
    return transform, (before / max(units, 1), after / max(units, 1)), notes


def _diagonal(gain: Float[Tensor, ...]) -> Tensor:
    return gain.flatten(gain.ndim // 2).flatten(0, -2).diagonal()


def _similarities(balanced: Pair, groups: Mapping[str, str]) -> dict[str, Similarity]:
    """Return by line how alike units of balanced models respond, from a run of these; each can be asked for once."""
    collected = collect(balanced)

    def of(line: str) -> Similarity:
        units = len(collected[line][0].cross)

        def mean(shape: tuple[int, ...]) -> Tensor:
            sites = collected.pop(line)  # freed as soon as they are used
            count, mixes = len(sites), groups.get(level_names(line)[1]) in MIXING_GROUPS
            similarity = relative_covariance if mixes else _correlation
            total = similarity(sites.pop(0), shape)
            while sites:
                total += similarity(sites.pop(0), shape)
            return total / count

        return Similarity(units, mean)

    return {line: of(line) for line in collected}


def _gains(
    pair: Pair, lines: Mapping[str, Similarity], kinds: frozenset[str], groups: Mapping[str, str]
) -> Iterator[tuple[str, dict[Slot, Float[Tensor, ...]]]]:
    """Yield (coordinate, slot -> how alike units of a and of b respond, averaged over the sites of the slot)."""
    movable = pair.axes_of(kinds)
    counts = {axis: shape[-1] for axis, shape in pair.spec.fit(pair.shapes).items()}
    lines_of: dict[str, list[str]] = {}
    for line in lines:
        if (coordinate := level_names(line)[0][0]) in movable:
            lines_of.setdefault(coordinate, []).append(line)
    check_seen(movable, {c: {level_names(line)[0] for line in lines} for c, lines in lines_of.items()})
    for coordinate, own in lines_of.items():
        gains: dict[Slot, Tensor] = {}
        for line in own:
            names, axis = level_names(line)
            shape = level_sizes(names, counts, lines[line].units)
            gains[names, axis if axis in groups else ""] = lines[line].measured(shape)
        yield coordinate, gains


def _correlation(site: CrossMoments, shape: tuple[int, ...]) -> Tensor:
    return site.correlation().reshape(*shape, *shape)
