"""Tables of scores are read line by line, and a malformed one is one clear line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from evals.results.score_table import read_score_table
from merge.errors import TaskError


def _table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "runs.csv"
    path.write_bytes(text.encode("utf-8"))
    return path


def test_runs_are_read_and_lines_that_summarise_them_are_kept_apart(tmp_path: Path) -> None:
    text = "﻿Run,MNLI,HANS\nRun 0,.84,.5\nRun 1,.83,\nMean,.835,.5\n,,\n\n"
    table = read_score_table(_table(tmp_path, text))
    assert table.runs == ("Run 0", "Run 1")
    assert table.scores["MNLI"] == (0.84, 0.83)
    assert table.scores["HANS"][0] == 0.5
    assert math.isnan(table.scores["HANS"][1])
    assert table.aggregates == {"mean": {"MNLI": 0.835, "HANS": 0.5}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a header and a line for each run, found 0 lines"),
        ("Run,a\nMean,1\n", "expected a line for each run, found none"),
        ("Run,a,a\nx,1,2\n", "these columns occur more than once: a"),
        ("Run,a\nx,1\nx,2\n", "these runs occur more than once: x"),
        ("Run,a\nx,1,2\n", "line 2: expected 2 fields as in the header, found 3"),
        ("Run,a\nx,good\n", "line 2: could not convert string to float: 'good'; expected a score"),
    ],
)
def test_a_malformed_table_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read_score_table(_table(tmp_path, text))


def test_a_file_that_is_not_there_or_no_text_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot be read as a table of scores"):
        read_score_table(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match="cannot be read as a table of scores"):
        read_score_table(tmp_path / "bytes.csv")
