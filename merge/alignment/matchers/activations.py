"""Activation matching: units that respond alike to the same text are the same unit.

Maximises the sum over matched units of their Pearson correlation on calibration text, exactly, axis by axis (an
activation does not depend on how the other axes are ordered, so no sweeps are needed). Cross-moments are streamed: of a
batch one model's activations are alive, and of the other's the site that is being compared. Padding is masked out.
With maps as well: `merge.alignment.matchers.rotations`.

Source: Li et al. 2016, arXiv:1511.07543; Ainsworth et al. 2023, arXiv:2209.04836, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from merge.alignment.pair import Alignment, Matcher, Pair, check_kinds, check_text
from merge.alignment.solvers.assignment import match_axis
from merge.alignment.solvers.blocks import match_blocks
from merge.alignment.solvers.moments import Correlations, check_seen, unit_correlations
from merge.symmetry.permutation import Permutation, identity, view_index


def match_activations(pair: Pair) -> Matcher:
    """Return the matcher that aligns b to a by how their units respond to the pair's batches.

    Raises:
        AlignmentError: there are no batches: activations need text and a tokenizer.
    """
    check_text(pair, "activation matching")
    correlations = unit_correlations(pair)

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        return _solve(pair, correlations, kinds)

    return match


def _solve(pair: Pair, correlations: Correlations, kinds: frozenset[str]) -> Alignment:
    """Match every axis of these kinds on its correlations; the objective is the mean correlation of matched units."""
    still = identity(pair.spec, pair.shapes)
    movable = pair.axes_of(kinds)
    moves: dict[str, dict[tuple[str, ...], Tensor]] = {}
    for view, correlation in correlations.items():
        if view.names[0] in movable:
            moves.setdefault(view.names[0], {})[view.names] = correlation.reshape(*view.shape, *view.shape)
    check_seen(movable, moves)
    indices = dict(still.indices)
    for move, likeness in moves.items():
        gains = {names: gain.double() for names, gain in likeness.items()}
        indices |= {move: match_axis(gains[move,])} if (move,) in gains and len(gains) == 1 else match_blocks(gains)
    found = Permutation(indices, still.outer)
    values = [_matched(correlations, movable, p) for p in (still, found)]
    return Alignment(found, tuple(k for k in pair.kinds() if k in kinds), tuple(values))


def _matched(correlations: Correlations, movable: Sequence[str], p: Permutation) -> float:
    """Return the mean correlation over all units of the movable axes as p matches them."""
    total, units = 0.0, 0
    for view, correlation in correlations.items():
        if view.names[0] in movable:
            total += float(correlation.gather(1, view_index(view, p).reshape(-1, 1)).sum())
            units += len(correlation)
    return total / max(units, 1)
