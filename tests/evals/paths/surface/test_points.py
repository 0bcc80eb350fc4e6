"""The store of points: what was measured is read again, whatever the end of its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from captured_log import CapturedLog

from evals.paths.surface.points import Value, point_store, rounded
from merge.errors import OutputError

VALUES = (Value(0.5, 0.1, {"accuracy": 0.75}), Value(1.5, None, {"matthews_correlation": None}))


def test_points_are_read_again_and_a_cut_line_is_measured_again(tmp_path: Path) -> None:
    with point_store(tmp_path, "points-1") as store:
        store.add((0.5, 0.5), VALUES)
        store.add((1.0, 0.0), VALUES[:1])
    path = tmp_path / "surface" / "points-1.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with point_store(tmp_path, "points-1") as store:
        assert store.values == {(0.5, 0.5): VALUES}
        store.add((1.0, 0.0), VALUES[:1])
    assert path.read_bytes() == whole
    with point_store(tmp_path, "points-1", force=True) as store:
        assert store.values == {}
    assert [each.name for each in (tmp_path / "surface").iterdir()] == []


def test_a_point_that_was_changed_is_measured_again_and_said(tmp_path: Path, captured_log: CapturedLog) -> None:
    """Another number, another type, an older line without a checksum: none of them is a value."""
    with point_store(tmp_path, "points-1") as store:
        store.add((0.5, 0.5), VALUES)
        store.add((1.0, 0.0), VALUES[:1])
    path = tmp_path / "surface" / "points-1.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    for damaged in (
        first.replace(b"1.5", b"1.6"),
        first.replace(b"1.5", b'"x"'),
        first.replace(b"checksum", b"x"),
        b"\n",
    ):
        captured_log.messages.clear()
        path.write_bytes(damaged + second)
        with point_store(tmp_path, "points-1") as store:
            assert store.values == {(1.0, 0.0): VALUES[:1]}
        assert ["1 of 2 points are not used, and measured again" in line for line in captured_log.messages] == [True]
        assert path.read_bytes() == second


def test_one_process_at_a_time_measures_the_points_of_a_key(tmp_path: Path) -> None:
    with point_store(tmp_path, "points-1"):
        with (
            pytest.raises(OutputError, match="another process measures these points"),
            point_store(tmp_path, "points-1"),
        ):
            pass
        with point_store(tmp_path, "points-2") as other:  # another key
            assert other.values == {}


def test_a_point_is_known_by_twelve_digits() -> None:
    assert rounded([0.1 + 0.2, -0.0]) == (0.3, 0.0)
    assert rounded([0.3 + 1e-9]) != (0.3,)


def test_what_fails_while_points_are_measured_is_not_blamed_on_their_file(tmp_path: Path) -> None:
    """A model that cannot be read, say; the control: a file of points that cannot be written is."""
    with pytest.raises(FileNotFoundError, match=r"a/tokenizer\.json"), point_store(tmp_path, "k"):
        raise FileNotFoundError(2, "No such file", "a/tokenizer.json")
    with point_store(tmp_path, "k") as store:
        assert store.path is not None
        store.path.mkdir()
        with pytest.raises(OutputError, match=r"k\.jsonl cannot be written: "):
            store.add((0.5,), VALUES)
    with pytest.raises(OutputError, match=r"k\.jsonl cannot be used: "), point_store(tmp_path, "k", force=True):
        pass
    assert [each.name for each in (tmp_path / "surface").iterdir()] == ["k.jsonl"]
