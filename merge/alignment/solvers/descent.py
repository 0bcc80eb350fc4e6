"""Coordinate descent: match one axis at a time, everything else held, until no axis alone can gain.

`coordinate_descent` is the loop, over anything that improves along one coordinate at a time: `PermutationDescent` here, and
`merge.alignment.solvers.descent_with_maps`. A coordinate is an axis, or the blocks of a split axis (heads) together with the
orders inside them.

Source: Ainsworth et al. 2023, arXiv:2209.04836, section 3.2 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from merge.alignment.solvers.assignment import match_axis
from merge.alignment.solvers.blocks import match_blocks, match_inside
from merge.alignment.solvers.circuits import circuit_gains
from merge.alignment.solvers.objective import Objective, State, equal_states
from merge.machine import in_parallel
from merge.symmetry.permutation import Permutation

MAX_SWEEPS = 50
# Sweeps end when one gains less than this share of the objective; a restart is kept only if it gains more.
REL_TOLERANCE = 1e-6
# A step that gains less than this for each entry of the tensors is rounding, not progress.
ENTRY_TOLERANCE = 1e-12
# Share of the units of an axis that a restart shuffles. Descents from wholly random starts end lower.
SHUFFLED_SHARE = 1 / 3

P = TypeVar("P")


class Point(Protocol):
    """A point of a search that improves along one coordinate at a time."""

    @property
    def value(self) -> float:
        """The objective; larger is better."""

    def sweep(self, order: Sequence[str]) -> bool:
        """Improve along every coordinate once, in this order; return whether any step was taken."""


def coordinate_descent(
    point: Point, order: Sequence[str], max_sweeps: int = MAX_SWEEPS, rel_tolerance: float = REL_TOLERANCE
) -> tuple[float, ...]:
    """Sweep until no coordinate changes or a sweep gains too little; return the objective at the start and after each."""
    history = [point.value]
    for _ in range(max_sweeps):
        if not point.sweep(order):
            break
        history.append(point.value)
        if history[-1] - history[-2] < rel_tolerance * abs(history[-2]):
            break
    return tuple(history)


def best_of_restarts(
    start: tuple[P, float],
    coordinates: Sequence[str],
    restarts: int,
    generator: torch.Generator,
    attempt: Callable[[P, Sequence[str]], tuple[P, float]],
) -> tuple[P, float]:
    """Return the best of a point and of further descents, each from the best so far, with its objective.

    Args:
        attempt: from the best point, and the coordinates in random order, to where a disturbed descent ends.
    """
    best, value = start
    for _ in range(restarts):
        # In random order: the shuffled axis first would go back to where it was.
        order = [coordinates[k] for k in torch.randperm(len(coordinates), generator=generator).tolist()]
        point, reached = attempt(best, order)
        if reached - value > REL_TOLERANCE * abs(value):
            best, value = point, reached
    return best, value


def shuffled(index: Int[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, " n"]:
    """Return an index array with SHUFFLED_SHARE of its entries, drawn at random, in random order."""
    index = index.clone()
    some = torch.randperm(len(index), generator=generator)[: max(2, round(SHUFFLED_SHARE * len(index)))]
    index[some] = index[some[torch.randperm(len(some), generator=generator)]]
    return index


def busiest(tensors: Mapping[str, Sequence[str]]) -> str:
    """Return the coordinate that most tensors have: the residual stream, where it moves."""
    return max(tensors, key=lambda coordinate: len(tensors[coordinate]))


@dataclass(frozen=True)
class Descended:
    """Where a descent ended, and the objective at its start and after each sweep."""

    permutation: Permutation
    history: tuple[float, ...]


class PermutationDescent:
    """Coordinate descent on the objective of weight matching; keeps between runs which axes are at their best.

    Attributes:
        coordinates: what is matched one at a time, in the order of the table.
        permutation: the current one, once `run` has begun.
        terms: J's term for each tensor there.
    """

    def __init__(self, objective: Objective, circuits: bool = False) -> None:
        self.objective, self.circuits = objective, circuits
        self.coordinates = tuple(objective.occurrences)
        self.axes = {c: objective.axes_of(c) for c in self.coordinates}
        self.context = {c: objective.context(c) for c in self.coordinates}
        self.permutation: Permutation
        self.terms: dict[str, float] = {}
        # What each axis and those it depends on were when it was last matched.
        self._matched_at: dict[str, State] = {}
        # Blocks that circuits have matched; from then on only the orders inside them change.
        self._fixed_blocks: set[str] = set()

    @property
    def value(self) -> float:
        """J at the current permutation."""
        return sum(self.terms.values())

    def run(
        self,
        start: Permutation,
        terms: Mapping[str, float] | None = None,
        order: Sequence[str] | None = None,
        rel_tolerance: float = REL_TOLERANCE,
    ) -> Descended:
        """Descend from a permutation.

        Args:
            terms: J's terms at the start, where they have been computed.
            order: of the coordinates; that of the table if None.
            rel_tolerance: 0 goes on until no axis changes.
        """
        objective = self.objective
        self.permutation, self.terms = (
            start,
            dict(objective.terms(objective.tensor_names, start) if terms is None else terms),
        )
        history = coordinate_descent(self, self.coordinates if order is None else order, rel_tolerance=rel_tolerance)
        return Descended(self.permutation, history)

    def shuffled(self, p: Permutation, generator: torch.Generator) -> Permutation:
        """Return p with some units of the busiest axis in random order, and no blocks fixed any longer."""
        self._fixed_blocks.clear()
        axis = busiest(self.objective.tensors)
        return Permutation({**p.indices, axis: shuffled(p.indices[axis], generator)}, p.outer)

    def first_pass(self, start: Permutation) -> Permutation:
        """Return every axis matched against those matched before it: embeddings order the residual, that the layers."""
        p, matched = start, frozenset[str]()
        for run in self.runs(self.coordinates):
            p = self._in_parallel(run, p, partial(self._match, p, matched=matched))
            for coordinate in run:
                if matched.issuperset(self.context[coordinate]) and self._is_linear(coordinate):
                    self._matched_at[coordinate] = self._state(coordinate, p)
            matched |= {axis for coordinate in run for axis in self.axes[coordinate]}
        return p

    def sweep(self, order: Sequence[str]) -> bool:
        """Match every axis once, in this order; return whether any changed."""
        before = self.permutation
        for run in self.runs(order):
            self.permutation = self._in_parallel(run, self.permutation, partial(self._improve, self.permutation))
        return self.permutation is not before

    def runs(self, order: Sequence[str]) -> list[list[str]]:
        """Return the coordinates in this order, neighbours that share no tensor together: they do not affect each other."""
        runs: list[list[str]] = []
        names: set[str] = set()
        for coordinate in order:
            if runs and names.isdisjoint(self.objective.tensors[coordinate]):
                runs[-1].append(coordinate)
            else:
                runs.append([coordinate])
                names = set()
            names |= set(self.objective.tensors[coordinate])
        return runs

    def _improve(self, p: Permutation, coordinate: str) -> Permutation:
        """Return p with this coordinate at its best, or p itself when that gains nothing; bring the terms up to date.

        The comparison is on the tensors themselves: where one axis occurs twice in a tensor (the MLM transform) the
        gain matrix is only a linearisation.
        """
        if coordinate in self._matched_at and equal_states(self._matched_at[coordinate], self._state(coordinate, p)):
            return p
        objective, names = self.objective, self.objective.tensors[coordinate]
        candidate = self._match(p, coordinate)
        if all(torch.equal(candidate.indices[axis], p.indices[axis]) for axis in self.axes[coordinate]):
            candidate = p
        else:
            terms = objective.terms(names, candidate)
            gained = sum(terms.values()) - sum(self.terms[name] for name in names)
            if gained > ENTRY_TOLERANCE * objective.entries:
                self.terms.update(terms)
            else:
                candidate = p
        if candidate is p or self._is_linear(coordinate):
            self._matched_at[coordinate] = self._state(coordinate, candidate)
        return candidate

    def _match(self, p: Permutation, coordinate: str, matched: frozenset[str] | None = None) -> Permutation:
        """Return p with one axis, or blocks and the orders inside them, at their best."""
        gains = self.objective.gains(coordinate, p, matched)
        alone = gains.get((coordinate,))
        if alone is not None and len(gains) == 1:
            indices = {coordinate: match_axis(alone)}
        elif not self.circuits:
            indices = match_blocks(gains)
        else:
            # Once in a descent: what rows gain by other pairs of blocks does not tell blocks apart.
            blocks = p.indices[coordinate]
            if coordinate not in self._fixed_blocks:
                blocks = match_blocks(circuit_gains(self.objective, coordinate, p))[coordinate]
            self._fixed_blocks.add(coordinate)
            indices = match_inside(gains, blocks)
        return Permutation({**p.indices, **indices}, p.outer)

    def _state(self, coordinate: str, p: Permutation) -> State:
        return tuple(p.indices[axis] for axis in (*self.axes[coordinate], *self.context[coordinate]))

    def _is_linear(self, coordinate: str) -> bool:
        """Return whether the gains of an axis do not depend on its own order."""
        return set(self.axes[coordinate]).isdisjoint(self.context[coordinate])

    def _in_parallel(self, run: Sequence[str], p: Permutation, match: Callable[[str], Permutation]) -> Permutation:
        """Return p with every axis of a run as it is when matched alone; p itself if none has changed."""
        permutations = in_parallel(match, run)
        if all(permutation is p for permutation in permutations):
            return p
        changed = {
            axis: permutation.indices[axis]
            for coordinate, permutation in zip(run, permutations, strict=True)
            for axis in self.axes[coordinate]
        }
        return Permutation({**p.indices, **changed}, p.outer)
