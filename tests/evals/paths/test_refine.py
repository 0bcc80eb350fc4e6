"""A refined grid finds what an even one steps over, and adds nothing where there is nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from evals.paths.refine import BEND_SHARE, LEAST_STEP, even_grid, refine

HILL = 0.62


def hill(x: float) -> float:
    """A hill that rises by 1 within a tenth of the line."""
    return float(np.exp(-(((x - HILL) / 0.04) ** 2)))


def refined(curves: list[Callable[[float], float]], points: int = 11, room: int = 200) -> list[float]:
    """Return the grid when nothing is left to refine."""
    lam = even_grid(points)
    while new := refine(lam, [[curve(x) for x in lam] for curve in curves], room):
        assert not set(new) & set(lam)
        lam = sorted([*lam, *new])
    return lam


def test_a_hill_between_two_points_is_found_to_its_height() -> None:
    """On 11 even points its height is .78 of 1."""
    lam = refined([hill])
    assert max(map(hill, even_grid(11))) < 0.8
    assert max(map(hill, lam)) > 0.99
    near = [x for x in lam if abs(x - HILL) < 0.15]
    assert len(near) > len(lam) / 2


def test_what_is_left_is_within_the_stated_share_of_the_chord() -> None:
    lam = refined([hill])
    values = [hill(x) for x in lam]
    tolerated = BEND_SHARE * (max(values) - min(values))
    for (x0, x1, x2), (y0, y1, y2) in zip(
        zip(lam, lam[1:], lam[2:], strict=False), zip(values, values[1:], values[2:], strict=False), strict=True
    ):
        chord = y0 + (y2 - y0) * (x1 - x0) / (x2 - x0)
        assert abs(y1 - chord) <= tolerated or x2 - x0 <= 2 * LEAST_STEP


@pytest.mark.parametrize("curve", [lambda x: 0.7, lambda x: 2 - 3 * x, lambda x: 1 + 3e-6 * (round(8 * x) % 2)])
def test_level_and_straight_curves_and_rounding_take_no_further_points(curve: Callable[[float], float]) -> None:
    assert refined([curve]) == even_grid(11)


def test_any_data_set_that_bends_refines_the_grid_of_all() -> None:
    assert refined([lambda x: x, hill]) == refined([hill])
    assert len(refined([lambda x: x, hill])) > 11


def test_no_more_is_returned_than_there_is_room_for_and_the_worst_bend_comes_first() -> None:
    lam = even_grid(11)
    new = refine(lam, [[hill(x) for x in lam]], 2)
    assert new == [pytest.approx(0.55), pytest.approx(0.65)]
    assert refine(lam, [[hill(x) for x in lam]], 0) == []


def test_a_kink_stops_at_the_least_step() -> None:
    """|x - c| bends at every scale, so the step ends it: the kink is enclosed, and the grid stays finite."""
    lam = refined([lambda x: abs(x - 0.3141)])
    around = [b - a for a, b in pairwise(lam) if a <= 0.3141 <= b]
    assert max(around) <= 0.1 / 8
    assert len(lam) < 40
