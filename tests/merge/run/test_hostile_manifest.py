"""merge.json changed by hand: verify names the entry, in one line, and follows no name out of what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from merge.disk.hashes import file_hash
from merge.errors import CheckpointError, RecipeError
from merge.recipe.recipe import make_recipe
from merge.run.verify import verify

SOUND: dict[str, Any] = {
    "files": {"x": "0"}, "base": None, "applied": {}, "models": [{"source": "a", "commit": None, "files": {"y": "0"}}]
}  # fmt: skip
FOREIGN = (
    "x",
    [],
    ["x"],
    1,
    None,
    True,
    {"x": 1},
    {"x": ["y"]},
    [1],
    [{}],
    [{"source": 1, "commit": None, "files": {}}],
)


FITTING = {"files": {}, "models": [], "base": None, "applied": {}}


def test_an_empty_entry_of_the_right_type_is_read(tmp_path: Path) -> None:
    """The control of the next test."""
    (tmp_path / "merge.json").write_text(json.dumps(SOUND | FITTING), encoding="utf-8")
    assert verify(tmp_path).inputs == {}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key in FITTING for value in FOREIGN if value != FITTING[key]], ids=repr
)
def test_an_entry_of_another_type_is_one_line(key: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "merge.json").write_text(json.dumps(SOUND | {key: value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"merge.json is malformed: {key}") as caught:
        verify(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/dev/zero", "~nobody-of-that-name/x", "x" * 5000, "../../x", ""])
def test_names_of_what_is_no_file_are_not_here(name: str, tmp_path: Path) -> None:
    """A device would never end, a name too long is an error of the system."""
    model = {"source": name, "commit": None, "files": {name or "x": "0"}}
    (tmp_path / "merge.json").write_text(
        json.dumps({"files": {}, "models": [model], "applied": {name: "0"}}), encoding="utf-8"
    )
    assert set(verify(tmp_path).inputs.values()) <= {"not here", "changed"}
    with pytest.raises(OSError, match="found a device"):
        file_hash(Path("/dev/zero"))


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
@pytest.mark.parametrize(
    "place",
    [
        lambda t: {"output": t},
        lambda t: {"models": [t, "b"]},
        lambda t: {"evaluation": [{"task": "mnli", "labels": ["x", t]}]},
        lambda t: {"evaluation": [{"task": "mnli", "data": t}]},
        lambda t: {"align": {"by": "activations", "text": t}},
    ],
)
def test_a_text_that_no_file_can_hold_is_refused_before_the_merge(place: Any, text: str) -> None:
    """Written out after the merge it would leave half of an evaluation behind."""
    with pytest.raises(RecipeError, match="NUL or half of a surrogate pair"):
        make_recipe({"models": ["a", "b"], **place(text)})
    make_recipe({"models": ["a", "b"], **place("mnli")})
