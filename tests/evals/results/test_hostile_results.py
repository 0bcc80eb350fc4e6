"""results.json and predictions written by hand or damaged: every wrong type is one line, and nothing is read from a pipe."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from captured_log import CapturedLog
from quick import quick_on

from evals.heuristics.scores import HansTable
from evals.report import table_text, tables
from evals.report.page import write_page
from evals.results.predictions import METADATA, PredictionTable, read_predictions_table, write_predictions_table
from evals.results.store import add_result, load_results
from merge.disk.checksums import CHECKSUM
from merge.errors import CheckpointError, TaskError
from merge.publish.results_file import INSIDE, SURFACES, read_results

SCORES: dict[str, Any] = {
    "kind": "scores", "key": "k", "task": "mnli", "split": "dev", "data": "rows", "n": 9,
    "model": {"name": "a", "hash": "3f"}, "scores": {"accuracy": 0.5, "loss": None},
    "intervals": {"accuracy": {"low": 0.1, "high": 0.9, "standard_error": 0.1, "level": 0.95, "method": "Wilson"}},
    "notes": ["x"], "labels": ["p", "q"], "predictions": "predictions/k.parquet", "rows": "0", "seconds": 1.0,
    "hans": {"accuracy": 0.5, "heuristics": {"l": {"e": 0.5}}, "subcases": {"s": None}, "templates": {}, "counts": {}},
}  # fmt: skip
CURVE: dict[str, Any] = {
    "name": "naive", "lam": [0, 1], "loss": [0.5, None], "accuracy": [1, 0], "barrier": None, "barrier_lam": 0.5,
    "epsilon": 0, "convexity_gap": 0.0, "convexity_interval": [0, 0.5, 1], "standard_error": None, "temperature": [],
}  # fmt: skip
BARRIER: dict[str, Any] = {
    **{key: SCORES[key] for key in ("task", "split", "data", "n", "notes")}, "kind": "barrier", "key": "b",
    "a": {"name": "a"}, "b": {"name": "b"}, "curves": [CURVE], "alignment": {"moved": {"ffn": [3, 9]}},
}  # fmt: skip
FOREIGN: tuple[Any, ...] = (float("nan"), float("inf"), "0.5", [], {"x": {"y": [1]}}, True, [[1]], -1.5, "x")


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every part of a record."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[str | int, ...], to: Any) -> Any:
    """Return a copy with one part replaced."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return copy


def refusal(folder: Path) -> str:
    """Return the message that refuses a folder's results.json; nothing where it is read."""
    try:
        load_results(folder)
    except TaskError as error:
        return str(error)
    return ""


def show(results: list[dict[str, Any]]) -> None:
    """Make every table of records, as the commands and the page do."""
    shown = [tables.score_rows(results), tables.interval_rows(results), tables.barrier_rows(results)]
    shown += [tables.hans_rows(results), *(tables.part_rows(results, part) for part in ("subcases", "counts"))]
    shown += [tables.point_rows(record) for record in results if record["kind"] == "barrier"]
    for rows in filter(None, shown):
        table_text.plain_table(rows)


def stored(folder: Path, *records: Any) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps({"format": 1, "results": list(records)}), encoding="utf-8")
    return path


@pytest.mark.usefixtures("all_drawn")
@pytest.mark.parametrize("record", [SCORES, BARRIER], ids=["scores", "barrier"])
def test_every_part_of_another_type_is_one_line_or_can_be_shown(record: dict[str, Any], tmp_path: Path) -> None:
    """What passes the door is shown on the page and in the tables without an error: there is no third outcome."""
    assert load_results(stored(tmp_path, record).parent) == [record]
    refused = 0
    for path in places(record):
        for value in FOREIGN:
            stored(tmp_path, changed(record, path, value))
            line = refusal(tmp_path)
            assert "\n" not in line
            refused += "results.json" in line
            if not line:
                show(load_results(tmp_path))
    assert refused > 5 * len(list(places(record)))
    stored(tmp_path, record)
    write_page(tmp_path)


@pytest.mark.parametrize("record", [SCORES, BARRIER], ids=["scores", "barrier"])
@pytest.mark.parametrize("value", [float("nan"), {"x": 1}, "0.5"])
def test_no_number_may_be_nan_text_or_keys(record: dict[str, Any], value: Any, tmp_path: Path) -> None:
    for path in places(record):
        inner = record
        for key in path:
            inner = inner[key]
        if isinstance(inner, int | float):
            with pytest.raises(CheckpointError):
                read_results(stored(tmp_path, changed(record, path, value)), CheckpointError)


STUDY = {
    **{name: SCORES[name] for name in ("task", "split", "data", "n", "notes")},
    "models": [{"name": "a"}],
    "rows": [],
}


@pytest.mark.parametrize("kind", quick_on((next(iter(INSIDE)), next(iter(SURFACES))), [*INSIDE, *SURFACES]))
def test_a_study_that_is_not_as_it_was_written_is_set_aside(
    kind: str, tmp_path: Path, captured_log: CapturedLog
) -> None:
    """A line names it, it stays in the file beside new results, and one that is measured replaces it."""
    study = {**STUDY, "kind": kind, "key": f"{kind}-1", "rows": "0", "cells": [[0.5, 1.5], [2.5, None]]}
    add_result(tmp_path, study)
    assert load_results(tmp_path, warn=True) == [study]  # the control
    assert captured_log.messages == []
    sound = json.loads((tmp_path / "results.json").read_text())["results"][0]
    for damaged in (
        {**sound, "cells": sound["cells"][:1]},
        {**sound, "cells": "0.5"},
        {name: value for name, value in sound.items() if name != "cells"},
        {name: value for name, value in sound.items() if name != CHECKSUM},  # of an older version
        {**sound, "n": float("nan")},
        {**sound, "kind": "x", "cells": None},  # found by its key
    ):
        captured_log.messages.clear()
        stored(tmp_path, damaged)
        assert load_results(tmp_path, warn=True) == []
        (line,) = captured_log.messages
        assert f"measured again where it is asked for: {damaged['kind']} ({kind}-1)" in line
        add_result(tmp_path, SCORES)
        assert load_results(tmp_path) == [SCORES]
        assert [record["key"] for record in json.loads((tmp_path / "results.json").read_text())["results"]] == [
            f"{kind}-1",
            "k",
        ]
        add_result(tmp_path, study)
        assert load_results(tmp_path) == [SCORES, study]


def test_the_page_is_without_a_study_that_is_set_aside(tmp_path: Path) -> None:
    add_result(tmp_path, {**STUDY, "kind": "plane", "key": "plane-1", "rows": "0"})
    path = tmp_path / "results.json"
    with pytest.raises(KeyError):  # the control: these few fields are no plane
        write_page(tmp_path)
    path.write_text(path.read_text().replace('"n": 9', '"n": 8'))
    assert "plane-1" not in write_page(tmp_path).read_text()


@pytest.mark.parametrize("record", [SCORES, BARRIER], ids=["scores", "barrier"])
def test_the_kind_is_that_of_the_key(record: dict[str, Any], tmp_path: Path) -> None:
    """Else a record of a kind that has no schema would be found by its key, and read as if it had been checked."""
    named = {**record, "key": f"{record['kind']}-3f"}
    assert load_results(stored(tmp_path, named).parent) == [named]
    with pytest.raises(TaskError, match=f"kind should be {record['kind']}, found "):
        load_results(stored(tmp_path, {**named, "kind": "x"}).parent)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.parquet", "a/../../x"])
def test_predictions_lie_in_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="expected the path of a file in the folder"):
        load_results(stored(tmp_path, SCORES | {"predictions": name}).parent)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(TaskError, match="expected a file, found a pipe"):
        load_results(tmp_path)
    os.mkfifo(tmp_path / "p.parquet")
    with pytest.raises(TaskError, match="expected a file, found a pipe"):
        read_predictions_table(tmp_path / "p.parquet")


def test_a_hans_table_without_counts_is_one_line() -> None:
    for counts in ({}, {"pairs": "9"}, {"pairs": 9, "heuristics": {"l": 3}, "subcases": {}, "templates": {}}):
        with pytest.raises(TaskError, match="has no counts"):
            HansTable.from_json(SCORES["hans"] | {"counts": counts})


TABLE = PredictionTable(
    key="k", rows="0", labels=("p", "q"), classes=("p", "q"), ids=("1", "2"), gold=np.array([0, 1]),
    predicted=np.array([1, 1]), logits=np.zeros((2, 2), dtype=np.float32),
)  # fmt: skip


@pytest.mark.parametrize(
    "metadata",
    [
        b"", b"{", b"[]", b"1", b"\xff", b"[" * 5000, b'{"key": 1, "rows": "0", "labels": [], "classes": []}',
        b'{"key": "k", "rows": "0", "labels": "pq", "classes": ["p", "q"]}',
        b'{"key": "k", "rows": "0", "labels": [1, 2], "classes": ["p", "q"]}',
        b'{"key": "k", "rows": "0", "labels": ["p", "q"], "classes": ["z"]}',
        b'{"key": "k", "rows": "0", "labels": ["p"], "classes": ["p", "q"]}',
        b'{"key": "k", "rows": "0", "labels": [], "classes": []}',
        b'{"key": "\\ud800", "rows": "0", "labels": ["p", "q"], "classes": ["p", "q"]}',
    ],
)  # fmt: skip
def test_predictions_with_other_metadata_are_one_line(metadata: bytes, tmp_path: Path) -> None:
    path = write_predictions_table(tmp_path, TABLE)
    assert read_predictions_table(path).key == "k"
    table = pyarrow.parquet.read_table(path).replace_schema_metadata({METADATA: metadata})
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(TaskError, match="is not a predictions file") as caught:
        read_predictions_table(path)
    assert "\n" not in str(caught.value)
