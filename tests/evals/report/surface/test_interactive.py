"""The plane to point at: every measured point is in it with its weights, and a model's name breaks out of nothing."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from evals.report.surface.interactive import SHADES, interactive_plane
from evals.report.surface.section import surface_tables

pytestmark = pytest.mark.usefixtures("all_drawn")


def record(name: str = "a") -> dict[str, Any]:
    """Return a plane of three models with a loss of 1 + column, on a grid of 3 x 3 with one finer point."""
    points = [[i, j, float(i), float(j), 1.0 + i, 0.1, 0.5 + i / 10] for i in (0, 2, 4) for j in (0, 2, 4)]
    points.append([1, 1, 1.0, 1.0, 2.0, 0.1, None])
    numbers = {"off": 0.0, "loss": 1.0, "standard_error": 0.1, "score": 0.5}
    marks = [
        {"name": n, "x": x, "y": y, **numbers}
        for n, x, y in ((name, 0, 0), ("b", 2, 0), ("c", 0, 2), ("average", 0.7, 0.7))
    ]
    axes = {"origin": [1.0, 0.0, 0.0], "u": [-0.5, 0.5, 0.0], "v": [-0.5, 0.0, 0.5]}
    shown = {"kind": "plane", "task": "mnli", "axes": f"through {name}, b and c", "score": "accuracy", "side": [4, 2]}
    return {**shown, **axes, "marks": marks, "points": points, "low": [0.0, 0.0], "high": [4.0, 4.0]}


def payload(element: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', element, flags=re.DOTALL)
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def test_every_point_is_there_with_the_weights_that_make_it() -> None:
    element = interactive_plane(record(), "plane0")
    points = payload(element)["points"]
    assert len(points) == 10 + 4
    assert element.count("<rect ") == 10
    for point in points[:10]:
        assert sum(point["weights"]) == pytest.approx(1)
        assert point["weights"][1] * 2 == pytest.approx(point["x"])
    assert points[-1]["name"] == "average"
    assert points[-1]["weights"] == pytest.approx([1 / 3] * 3)


def test_the_colour_of_a_cell_is_that_of_its_loss() -> None:
    """The lowest loss has the last shade, the highest the first; the score goes the other way here, and none is grey."""
    element = interactive_plane(record(), "plane0")
    assert f'data-loss="{SHADES[-1]}" data-score="{SHADES[0]}"' in element
    assert f'data-loss="{SHADES[0]}" data-score="{SHADES[-1]}"' in element
    assert 'data-score="#999999"' in element


def test_a_name_breaks_out_of_nothing() -> None:
    element = interactive_plane(record("</script><b>"), "plane0")
    assert "<b>" not in element
    assert payload(element)["points"][10]["name"] == "</script><b>"


def test_names_of_marks_are_in_the_picture_and_the_right_one_begins_left_of_its_mark() -> None:
    made = record("zoo/a")
    made["marks"][1]["x"] = 4.0
    texts = re.findall(r'<text x="([\d.]+)" [^>]*>([^<]*)</text>', interactive_plane(made, "plane0"))
    places = {name: float(x) for x, name in texts}
    assert set(places) == {"a", "b", "c", "average"}
    assert 14 < places["a"] < 40
    assert places["b"] < 626


def test_the_table_names_the_lowest_point_with_its_weights() -> None:
    rows = surface_tables(record())[0]
    assert [row[0] for row in rows[1:]] == ["a", "b", "c", "average", "lowest on the grid"]
    assert rows[-1][4] == 1.0
    assert rows[-1][-1] == "1.000,0.000,0.000"
