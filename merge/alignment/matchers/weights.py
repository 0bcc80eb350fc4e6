"""Weight matching: coordinate descent on the inner product of the two models' weights, `merge.alignment.solvers.objective`.

One axis at a time, everything else held; heads and what is inside them move together, by an assignment of both. The
residual is matched first, on the embeddings, then heads and feed-forward units on that, layer beside layer. An axis is
matched again only when an axis that its gains depend on has changed. With maps as well: `merge.alignment.matchers.rotations`.

Source: Ainsworth et al. 2023, arXiv:2209.04836, section 3.2 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from merge.alignment.pair import Alignment, Matcher, Pair, check_kinds
from merge.alignment.solvers.assignment import match_axis
from merge.alignment.solvers.blocks import match_blocks, match_inside
from merge.alignment.solvers.circuits import circuit_gains
from merge.alignment.solvers.objective import Objective, State, same, weights_of
from merge.symmetry.permutation import Permutation, identity

MAX_SWEEPS = 50
# A change of one axis that gains less than this for each entry is rounding, not progress.
TOLERANCE = 1e-12
# Sweeps end when one gains less than this share of the objective.
ENOUGH = 1e-6

# Share of an axis that a restart shuffles. From wholly random starts descents end lower than from the embeddings.
SHAKEN = 1 / 3

# Axes that are matched at a time, at most: each holds matrices of its own.
WORKERS = 4


def match_weights(
    pair: Pair, circuits: bool = False, start: Callable[[frozenset[str]], Permutation] | None = None
) -> Matcher:
    """Return the matcher that aligns b to a by weights alone; it needs no data and is deterministic.

    Args:
        circuits: whether heads are matched by circuits, products of weights that no basis inside heads can change, instead
            of by the best order of the rows inside them (exact for permutations).
        start: kinds of axes -> where the first descent begins; None for a first pass; the identity where that is better.
    """
    weights = weights_of(pair)

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        still = identity(pair.spec, pair.shapes)
        descent = _Descent(Objective(pair, weights, pair.axes_of(kinds)), still, circuits)
        objective = descent.objective
        best = descent.run(None if start is None else start(kinds))
        nothing = best.history[0]
        generator = torch.Generator().manual_seed(pair.settings.seed)
        for _ in range(pair.settings.restarts):
            order = torch.randperm(len(descent.moves), generator=generator).tolist()
            shaken = descent.shaken(best.permutation, generator)
            shares = objective.shares(objective.moving, shaken)
            descent.decided.clear()  # what is shuffled is to be told apart again
            tried = descent.sweeps(shaken, shares, [descent.moves[k] for k in order])
            if tried.history[-1] - best.history[-1] > ENOUGH * abs(best.history[-1]):
                best = _Found(tried.permutation, (nothing, tried.history[-1]))
        values = tuple(value / objective.entries for value in best.history)
        return Alignment(best.permutation, tuple(k for k in pair.kinds() if k in kinds), values)

    return match


def match_by_circuits(pair: Pair) -> Matcher:
    """Return the matcher that tells heads apart by their circuits, whatever the bases inside them, and all else by rows."""
    return match_weights(pair, circuits=True)


@dataclass(frozen=True)
class _Found:
    """Where a descent ended, and J after each sweep."""

    permutation: Permutation
    history: tuple[float, ...]


class _Descent:
    """Coordinate descent from a start to where no axis alone can gain."""

    def __init__(self, objective: Objective, still: Permutation, circuits: bool) -> None:
        self.objective, self.still, self.circuits = objective, still, circuits
        self.moves = tuple(objective.touches)
        self.axes = {move: objective.axes_of(move) for move in self.moves}
        self.context = {move: objective.context(move) for move in self.moves}
        # What each axis and those it depends on were when it was last matched.
        self.settled: dict[str, State] = {}
        # Blocks of which circuits have said which is which.
        self.decided: set[str] = set()

    def run(self, start: Permutation | None) -> _Found:
        """Descend from the better of the identity and a start; without one, from a first pass."""
        objective = self.objective
        first = self._first_pass() if start is None else start
        tried = [(p, objective.shares(objective.moving, p)) for p in (self.still, first)]
        nothing, passed = (sum(shares.values()) for _, shares in tried)
        found = self.sweeps(*tried[passed > nothing], self.moves)
        return _Found(found.permutation, (nothing, *found.history))

    def shaken(self, p: Permutation, generator: torch.Generator) -> Permutation:
        """Return p with some units of the axis that most tensors have in random order."""
        busiest = max(self.moves, key=lambda move: len(self.objective.tensors[move]))
        index = p.indices[busiest].clone()
        some = torch.randperm(len(index), generator=generator)[: max(2, round(SHAKEN * len(index)))]
        index[some] = index[some[torch.randperm(len(some), generator=generator)]]
        return Permutation({**p.indices, busiest: index}, p.outer)

    def sweeps(self, start: Permutation, known: Mapping[str, float], order: Sequence[str]) -> _Found:
        """Match every axis in turn until none changes, or a sweep hardly gains; known are the start's shares of J."""
        current, shares = start, dict(known)
        history = [sum(shares.values())]
        for _ in range(MAX_SWEEPS):
            before = current
            for run in self._runs(order):
                current = self._side_by_side(run, current, partial(self._improve, current, shares=shares))
            if current is before:
                break
            history.append(sum(shares.values()))
            if history[-1] - history[-2] < ENOUGH * abs(history[-2]):
                break
        return _Found(current, tuple(history))

    def _state(self, move: str, p: Permutation) -> State:
        return tuple(p.indices[axis] for axis in (*self.axes[move], *self.context[move]))

    def _is_linear(self, move: str) -> bool:
        """Return whether the gains of an axis do not depend on its own order."""
        return set(self.axes[move]).isdisjoint(self.context[move])

    def _solve(self, p: Permutation, move: str, matched: frozenset[str] | None = None) -> Permutation:
        """Return p with one axis, or blocks and what is inside them, at their best."""
        gains = self.objective.gains(move, p, matched)
        alone = gains.get((move,))
        if alone is not None and len(gains) == 1:
            found = {move: match_axis(alone)}
        elif not self.circuits:
            found = match_blocks(gains)
        else:
            # Circuits say it once: what rows gain by other pairs of blocks is not what tells blocks apart.
            which = (
                p.indices[move] if move in self.decided else match_blocks(circuit_gains(self.objective, move, p))[move]
            )
            self.decided.add(move)
            found = match_inside(gains, which)
        return Permutation({**p.indices, **found}, p.outer)

    def _improve(self, p: Permutation, move: str, shares: dict[str, float]) -> Permutation:
        """Return p with this coordinate at its best, or p itself when that gains nothing; bring the shares up to date.

        The comparison is on the tensors themselves: where one axis stands twice in a tensor (the MLM transform) the
        gain matrix is only a linearisation.
        """
        if move in self.settled and same(self.settled[move], self._state(move, p)):
            return p
        tried = self._solve(p, move)
        tensors = self.objective.tensors[move]
        if all(torch.equal(tried.indices[axis], p.indices[axis]) for axis in self.axes[move]):
            tried = p
        else:
            new = self.objective.shares(tensors, tried)
            gained = sum(new.values()) - sum(shares[name] for name in tensors)
            if gained > TOLERANCE * self.objective.entries:
                shares |= new
            else:
                tried = p
        if tried is p or self._is_linear(move):
            self.settled[move] = self._state(move, tried)
        return tried

    def _first_pass(self) -> Permutation:
        """Match each axis in turn against what is already matched: embeddings fix the residual, that the layers."""
        p, matched = self.still, frozenset[str]()
        for run in self._runs(self.moves):
            p = self._side_by_side(run, p, partial(self._solve, p, matched=matched))
            for move in run:
                if matched.issuperset(self.context[move]) and self._is_linear(move):
                    self.settled[move] = self._state(move, p)
            matched |= {axis for move in run for axis in self.axes[move]}
        return p

    def _runs(self, order: Sequence[str]) -> list[list[str]]:
        """Return the axes in this order, those that follow each other and share no tensor together: no order among them."""
        runs: list[list[str]] = []
        seen: set[str] = set()
        for move in order:
            if runs and seen.isdisjoint(self.objective.tensors[move]):
                runs[-1].append(move)
            else:
                runs.append([move])
                seen = set()
            seen |= set(self.objective.tensors[move])
        return runs

    def _side_by_side(self, run: Sequence[str], p: Permutation, matched: Callable[[str], Permutation]) -> Permutation:
        """Return p with every axis of a run as it is when matched alone; p itself if none has changed."""
        threads = torch.get_num_threads()
        if threads == 1 or len(run) == 1:
            found = [matched(move) for move in run]
        else:
            torch.set_num_threads(1)  # of each product: there are enough of them
            try:
                with ThreadPoolExecutor(min(threads, WORKERS)) as pool:
                    found = list(pool.map(matched, run))
            finally:
                torch.set_num_threads(threads)
        if all(one is p for one in found):
            return p
        own = {axis: one.indices[axis] for move, one in zip(run, found, strict=True) for axis in self.axes[move]}
        return Permutation({**p.indices, **own}, p.outer)
