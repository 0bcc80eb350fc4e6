"""A setting that changes over the layers: linear between its points, and nowhere beyond them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from merge.errors import UsageError
from merge.recipe.gradient import AFTER, BEFORE, is_gradient, positions, value_at


@pytest.mark.parametrize("points", [[0.3], [0, 1], [0.1, 0.9, 0.2], [1, 0, 1, 0, 2.5]])
def test_a_gradient_is_linear_between_points_at_equal_distances(points: list[float]) -> None:
    """As numpy interpolates; the ends are the first and the last point exactly."""
    for position in np.linspace(0, 1, 23):
        expected = np.interp(position, np.linspace(0, 1, len(points)) if len(points) > 1 else [0.0], points)
        assert value_at({"gradient": points}, float(position)) == pytest.approx(expected, abs=1e-12)
    assert value_at({"gradient": points}, 0.0) == points[0]
    assert value_at({"gradient": points}, 1.0) == points[-1]


def test_lists_are_read_item_by_item_and_others_stand_for_themselves() -> None:
    assert value_at([0.5, {"gradient": [0, 1]}, "x"], 0.25) == [0.5, 0.25, "x"]
    assert value_at((1, {"gradient": [2, 4]}), 0.5) == (1, 3.0)
    assert value_at(True, 0.7) is True
    assert value_at(None, 0.7) is None


def test_tensors_outside_the_layers_have_the_nearest_value_or_one_of_their_own() -> None:
    plain, own = {"gradient": [0.1, 0.9]}, {"gradient": [0.1, 0.9], "outside": 0.5}
    assert (value_at(plain, BEFORE), value_at(plain, AFTER)) == (0.1, 0.9)
    assert (value_at(own, BEFORE), value_at(own, AFTER)) == (0.5, 0.5)
    assert (value_at(own, 0.0), value_at(own, 1.0)) == (0.1, 0.9)
    assert positions([own]) == {BEFORE, 0.0, 1.0}


def test_the_positions_are_those_of_every_point() -> None:
    """What holds at each of them holds between them: a range has no holes."""
    assert positions([0.5, [1, 2], None]) == {0.0}
    assert positions([{"gradient": [0, 1, 0]}, [3, {"gradient": [5, 6]}]]) == {0.0, 0.5, 1.0}
    assert positions([{"gradient": [7]}]) == {0.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"gradient": []}, {"gradient": 3}, {"gradient": [1, "x"]}, {"gradient": [1, True]},
        {"gradient": [1, float("nan")]}, {"gradient": [0, 1], "more": 1}, {"gradeint": [0, 1]},
        {"gradient": [0, 1], "outside": "x"}, {"outside": 1},
    ],
)  # fmt: skip
def test_what_is_nearly_a_gradient_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="a gradient is written"):
        is_gradient(wrong)
    assert not is_gradient(0.5)
    assert is_gradient({"gradient": [0, 1]})
