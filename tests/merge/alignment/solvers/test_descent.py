"""Coordinate descent: when the loop ends, which restart is kept, and what a shuffle moves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from merge.alignment.solvers.descent import best_of_restarts, busiest, coordinate_descent, shuffled


class Halving:
    """A point whose distance from its optimum, J = 1, halves with every sweep of its two coordinates."""

    def __init__(self, sweeps: int) -> None:
        self.distance, self.left, self.orders = 1.0, sweeps, list[tuple[str, ...]]()

    @property
    def value(self) -> float:
        return 1 - self.distance

    def sweep(self, order: Sequence[str]) -> bool:
        self.orders.append(tuple(order))
        if not self.left:
            return False
        self.left, self.distance = self.left - 1, self.distance / 2
        return True


def test_sweeps_end_when_nothing_changes() -> None:
    """The last sweep finds nothing and adds no value; every sweep has the order that was given."""
    point = Halving(sweeps=3)
    assert coordinate_descent(point, ("b", "a")) == (0.0, 0.5, 0.75, 0.875)
    assert point.orders == [("b", "a")] * 4


@pytest.mark.parametrize(("rel_tolerance", "sweeps"), [(0.0, 40), (0.1, 4), (1e-3, 10)])
def test_sweeps_end_when_one_gains_too_little(rel_tolerance: float, sweeps: int) -> None:
    """The k-th gains 2^-k of about one: by hand the first of less than a tenth is the fourth, of a thousandth the tenth."""
    history = coordinate_descent(Halving(sweeps=40), ("a",), rel_tolerance=rel_tolerance)
    assert len(history) == 1 + sweeps


def test_sweeps_are_bounded() -> None:
    assert len(coordinate_descent(Halving(sweeps=40), ("a",), max_sweeps=5)) == 6


@pytest.mark.parametrize(("reached", "kept"), [(2.0, 2.0), (1.0 + 1e-7, 1.0), (0.5, 1.0), (-2.0, 1.0)])
def test_a_restart_is_kept_if_it_gains_more_than_rounding(reached: float, kept: float) -> None:
    def attempt(best: str, order: Sequence[str]) -> tuple[str, float]:
        assert sorted(order) == ["a", "b", "c"]
        return "restart", reached

    generator = torch.Generator().manual_seed(0)
    point, value = best_of_restarts(("start", 1.0), ("a", "b", "c"), 3, generator, attempt)
    assert (point, value) == ("restart" if kept == reached else "start", kept)


def test_each_restart_comes_from_the_best_so_far_in_another_order() -> None:
    starts, orders = list[int](), set[tuple[str, ...]]()

    def attempt(best: int, order: Sequence[str]) -> tuple[int, float]:
        starts.append(best)
        orders.add(tuple(order))
        return best + 1, 1.0 if best < 2 else 0.0 if best > 4 else float(best)

    best_of_restarts((0, 0.5), tuple("abcdef"), 4, torch.Generator().manual_seed(0), attempt)
    assert starts == [0, 1, 1, 1]
    assert len(orders) > 1


@pytest.mark.parametrize(("n", "most"), [(2, 2), (5, 2), (30, 10)])
def test_a_shuffle_permutes_a_third(n: int, most: int) -> None:
    """At least two units; every unit is there once; the index array that is given stays as it is."""
    index = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    before, changed = index.clone(), 0
    for seed in range(20):
        new = shuffled(index, torch.Generator().manual_seed(seed))
        assert new.sort().values.tolist() == list(range(n))
        assert int((new != index).sum()) <= most
        changed += not torch.equal(new, index)
    assert changed > 5
    assert torch.equal(index, before)


def test_the_busiest_coordinate_has_most_tensors() -> None:
    assert busiest({"ffn": ("x",), "residual": ("x", "y", "z"), "heads": ("y", "z", "w")}) == "residual"
