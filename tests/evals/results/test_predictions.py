"""What every row was predicted comes back from its file exactly, and a file is there whole or not at all."""

from __future__ import annotations

import math
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from evals.results.predictions import (
    PredictionTable,
    has_predictions,
    predictions_file,
    read_predictions_table,
    write_predictions_table,
)
from merge.errors import TaskError

TABLE = PredictionTable(
    key="scores-1",
    rows="ab" * 32,
    labels=("entailment", "non-entailment"),
    classes=("entailment", "neutral", "contradiction"),
    ids=("ex0", "ex1", "ex2"),
    gold=np.array([0, 1, 1]),
    predicted=np.array([0, 1, 0]),
    logits=np.array([[1.5, 0.25, -3], [0, 2e-7, 1], [9, math.inf, -1]], dtype=np.float32),
    heuristics=("subsequence", "lexical_overlap", "subsequence"),
)


def same(a: PredictionTable, b: PredictionTable) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(PredictionTable))


@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        replace(TABLE, heuristics=()),
        PredictionTable("r", "cd", (), ("LABEL_0",), ("0", "1"), np.array([0.2, 5]), np.array([1 / 3, 4]), np.ones((2, 1))),
    ],
    ids=["hans", "classes", "regression"],
)  # fmt: skip
def test_a_table_comes_back_exactly(tmp_path: Path, table: PredictionTable) -> None:
    """Names, class indices, float64 numbers and float32 logits; a table with one other number is another."""
    path = write_predictions_table(tmp_path, table)
    assert path == tmp_path / "predictions" / f"{table.key}.parquet" == tmp_path / predictions_file(table.key)
    found = read_predictions_table(path)
    assert same(found, table)
    other = table.predicted.copy()
    other[0] = table.predicted[1]
    assert not same(found, replace(table, predicted=other))


def test_other_programs_read_class_names(tmp_path: Path) -> None:
    """pandas sees words, so that nobody need ask what class 1 was, and one column a class of the model."""
    frame = pandas.read_parquet(write_predictions_table(tmp_path, TABLE))
    assert list(frame.columns) == [
        "id", "gold", "predicted", "logit entailment", "logit neutral", "logit contradiction", "heuristic",
    ]  # fmt: skip
    assert frame["gold"].tolist() == ["entailment", "non-entailment", "non-entailment"]
    assert frame["predicted"].tolist() == ["entailment", "non-entailment", "entailment"]
    assert frame["logit neutral"].tolist() == TABLE.logits[:, 1].tolist()


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_predictions_table(tmp_path, TABLE)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TaskError, match=r"scores-1\.parquet cannot be written: .*No space left"):
        write_predictions_table(tmp_path, replace(TABLE, predicted=TABLE.gold))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["scores-1.parquet"]
    monkeypatch.undo()
    write_predictions_table(tmp_path, replace(TABLE, predicted=TABLE.gold))
    assert path.read_bytes() != before
    with pytest.raises(TaskError, match="cannot be written"):
        write_predictions_table(path, TABLE)  # a file where the folder would be


def test_a_file_that_is_none_of_ours_is_one_line_that_names_it(tmp_path: Path) -> None:
    """Missing, cut short, no parquet, another program's parquet, a class that the labels do not know."""
    path = write_predictions_table(tmp_path, TABLE)
    whole = path.read_bytes()
    strange, cut, plain, unknown = (tmp_path / f"{name}.parquet" for name in ("strange", "cut", "plain", "unknown"))
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"]}), strange)
    cut.write_bytes(whole[: len(whole) // 2])
    plain.write_text("id,gold\n")
    table = pyarrow.parquet.read_table(path)
    metadata = {b"merge-models": table.schema.metadata[b"merge-models"].replace(b'"non-entailment"', b'"neither"')}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), unknown)
    for broken in (strange, cut, plain, unknown):
        with pytest.raises(TaskError, match="is not a predictions file of evaluate-models") as caught:
            read_predictions_table(broken)
        assert str(broken) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(TaskError, match="there is no such file. Score the model again"):
        read_predictions_table(tmp_path / "missing.parquet")
    assert same(read_predictions_table(path), TABLE)


def test_a_record_has_its_predictions_if_their_file_is_there(tmp_path: Path) -> None:
    """A scores record without them is not whole; a barrier has none to miss."""
    record = {"kind": "scores", "predictions": predictions_file(TABLE.key)}
    assert not has_predictions(tmp_path, record)
    path = write_predictions_table(tmp_path, TABLE)
    assert has_predictions(tmp_path, record)
    assert not has_predictions(tmp_path, {"kind": "scores"})
    assert not has_predictions(None, record)
    path.unlink()
    assert not has_predictions(tmp_path, record)
    assert has_predictions(tmp_path, {"kind": "barrier"})
