"""Units as they are typed, and the lowest of a table of scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge.errors import UsageError
from merge.layers.pruning.selection import format_units, lowest, parse_units, read_units
from merge.layers.pruning.units import UnitLayer


def layers(*counts: int) -> list[UnitLayer]:
    return [UnitLayer(k, f"heads{k}", count, 1, (), (), None, "linear") for k, count in enumerate(counts)]


def scores(*rows: list[float]) -> dict[int, torch.Tensor]:
    return {k: torch.tensor(row, dtype=torch.float64) for k, row in enumerate(rows)}


def test_lists_are_read_as_they_are_typed() -> None:
    assert parse_units(["0:1,3", "2:5"], "heads") == {0: (1, 3), 2: (5,)}
    assert parse_units(["2:5-7,1 0:0", "0:4"], "heads") == {0: (0, 4), 2: (1, 5, 6, 7)}
    assert format_units({0: (1, 2, 3), 4: (0, 7)}) == "0:1-3 4:0,7"
    assert parse_units([format_units({0: (1, 2, 3), 4: (0, 7)})], "heads") == {0: (1, 2, 3), 4: (0, 7)}


@pytest.mark.parametrize("text", ["1", "0:", ":3", "0:a", "0:1;2", "-1:2", "0:3-1", "0:1,1", "0:1 0:1", "0:1,,2"])
def test_anything_else_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_units([text], "heads")
    assert "\n" not in str(raised.value)


def test_files_hold_lines_or_json(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps({"0": [3, 1], "2": [0, 1, 2], "3": []}))
    (tmp_path / "a.txt").write_text("# neurons\n0:1,3\n2:0-2\n")
    for name in ("a.txt", "b.json"):
        assert read_units(tmp_path / name, "neurons") == {0: (1, 3), 2: (0, 1, 2)}
    for bad in ('{"0": 3}', '{"zero": [1]}', '{"0": [true]}', '{"0": [-1]}', "{", "nothing"):
        (tmp_path / "c").write_text(bad)
        with pytest.raises(UsageError):
            read_units(tmp_path / "c", "neurons")


CHOICES: list[tuple[dict[str, Any], dict[int, tuple[int, ...]]]] = [
    ({"count": 2}, {0: (1,), 1: (2,)}),
    ({"count": 3}, {0: (1,), 1: (0, 2)}),
    ({"share": 0.5}, {0: (1,), 1: (0, 2)}),
    ({"count": 1, "per_layer": True}, {0: (1,), 1: (2,)}),
    ({"share": 0.7, "per_layer": True}, {0: (0, 1), 1: (0, 2)}),
    ({"count": 2, "protected": (1,)}, {0: (0, 1)}),
    ({"count": 4}, {0: (0, 1), 1: (0, 2)}),  # each layer keeps one, though two more of layer 1 are lower
]


@pytest.mark.parametrize(("options", "expected"), CHOICES, ids=lambda value: str(value))
def test_the_lowest_go_and_every_layer_keeps_one(options: dict[str, Any], expected: dict[int, tuple[int, ...]]) -> None:
    table = scores([5.0, 0.1, 9.0], [0.5, 0.7, 0.2])
    assert lowest(layers(3, 3), table, "heads", **options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 5}, "cannot remove 5 of 6 heads: expected 1 to 4"),
        ({"count": 0}, "cannot remove 0 of 6"),
        ({"count": 3, "per_layer": True}, "of 3 heads of a layer"),
        ({"count": 1, "protected": (7,)}, "--protect: there is no layer 7"),
        ({"share": 0.01}, "cannot remove 0 of 6"),
    ],
)
def test_what_cannot_be_removed_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lowest(layers(3, 3), scores([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), "heads", **options)
    with pytest.raises(UsageError, match="not a number"):
        lowest(layers(2), scores([1.0, float("nan")]), "heads", count=1)
