"""Activation matching: match units whose activations on the same text correlate.

Maximises the sum over matched units of their Pearson correlation on calibration text, exactly, axis by axis (an
activation does not depend on the order of the other axes, so no sweeps are needed). Cross-moments are accumulated batch by
batch: in memory are the activations of one model on a few texts, and one site of the other's. Padding is masked out.
With maps as well: `merge.alignment.matchers.rotations`.

Source: Li et al. 2016, arXiv:1511.07543; Ainsworth et al. 2023, arXiv:2209.04836, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from merge.alignment.pair import Alignment, Matcher, Measurements, Pair, check_kinds, check_text
from merge.alignment.solvers.assignment import match_axis
from merge.alignment.solvers.blocks import match_blocks
from merge.alignment.solvers.moments import Compared, Correlations, check_seen, compare_units
from merge.alignment.solvers.silent import settle_silent
from merge.machine import in_parallel
from merge.symmetry.permutation import Permutation, identity, view_index

# Axis -> its index array.
Indices = Mapping[str, Tensor]


def match_activations(pair: Pair) -> Matcher:
    """Return the matcher that aligns b to a by the correlations of their units on the pair's batches.

    Raises:
        AlignmentError: there are no batches: activations need text and a tokenizer.
    """
    check_text(pair, "activation matching")
    compared, solved = compare_units(pair), pair.once("orders by activations", dict[str, Indices])

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        return _solve(pair, compared, kinds, solved)

    return match


def _solve(pair: Pair, compared: Compared, kinds: frozenset[str], solved: dict[str, Indices]) -> Alignment:
    """Match every axis of these kinds on its correlations; the objective is the mean correlation of matched units.

    Args:
        solved: axis, or the blocks of a split axis -> the order that was found before; those found here are added.
    """
    unmoved, correlations = identity(pair.spec, pair.shapes), compared.correlations
    movable = pair.axes_of(kinds)
    by_coordinate: dict[str, dict[tuple[str, ...], Tensor]] = {}
    for view, correlation in correlations.items():
        if view.names[0] in movable:
            by_coordinate.setdefault(view.names[0], {})[view.names] = correlation.reshape(*view.shape, *view.shape)
    check_seen(movable, by_coordinate)

    def match(coordinate: str) -> Indices:
        gains = by_coordinate[coordinate]
        if set(gains) == {(coordinate,)}:
            return {coordinate: match_axis(gains[coordinate,])}
        return match_blocks({names: gain.double() for names, gain in gains.items()})

    new = [coordinate for coordinate in by_coordinate if coordinate not in solved]
    solved |= dict(zip(new, in_parallel(match, new), strict=True))
    indices = dict(unmoved.indices)
    for coordinate in by_coordinate:
        indices |= solved[coordinate]
    plain = {c: single[c,] for c, single in by_coordinate.items() if set(single) == {(c,)}}
    permutation, notes = settle_silent(pair, Permutation(indices, unmoved.outer), plain)
    values = [_mean_correlation(correlations, movable, p) for p in (unmoved, permutation)]
    kept = tuple(k for k in pair.kinds() if k in kinds)
    measured = Measurements(correlations, compared.outputs)
    return Alignment(permutation, kept, tuple(values), measured=measured, notes=notes)


def _mean_correlation(correlations: Correlations, movable: Sequence[str], p: Permutation) -> float:
    """Return the mean correlation of the units that p matches, over all movable axes."""
    total, units = 0.0, 0
    for view, correlation in correlations.items():
        if view.names[0] in movable:
            total += float(correlation.gather(1, view_index(view, p).reshape(-1, 1)).sum())
            units += len(correlation)
    return total / max(units, 1)
