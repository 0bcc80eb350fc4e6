"""What files of other programs show at their start is named in one line with what to do; files as they should be are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merge.errors import TaskError
from merge.text.starts import header_advice, is_object_a_line, is_utf_16, missing_column
from merge.text.table import open_table

ROWS = [["sentence", "label"], ["a doctor", "1"], ["the lawyer, who saw", "0"]]


def fault_of(path: Path) -> str:
    """Return the line that reading all rows of a file stops with; "" where it is read."""
    try:
        list(open_table(str(path), "rows", TaskError).rows)
    except TaskError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8", "utf-8-sig"])
def test_utf_16_is_named_with_and_without_its_mark(tmp_path: Path, encoding: str) -> None:
    text = "".join("\t".join(row) + "\n" for row in ROWS)
    for name in ("rows.tsv", "rows.txt", "rows.jsonl"):
        data = json.dumps({"sentence": "a doctor"}) if name.endswith("jsonl") else text
        (tmp_path / name).write_bytes(data.encode(encoding))
        found = fault_of(tmp_path / name)
        assert ("line 1: expected UTF-8 text, found UTF-16; save the file as UTF-8." in found) is ("16" in encoding), (
            found
        )
    assert not is_utf_16(b"a\0b, one odd character")


@pytest.mark.parametrize(
    ("header", "advice"),
    [
        (["sentence;label"], " Its fields are separated by semicolons; those of a .csv file are by commas"),
        (["sentence\tlabel"], " Its fields are separated by tabs"),
        (["sentence", " label"], " Rename the column ' label' to 'label'."),
        (["Sentence", "LABEL"], " Rename the column 'LABEL' to 'label'."),
        (["sentence", "stars"], ""),
        (["sentence"], ""),
    ],
)
def test_a_header_shows_why_a_column_is_missing(header: list[str], advice: str) -> None:
    assert header_advice(header, ("label", "gold_label")).startswith(advice)
    assert bool(header_advice(header, ("label", "gold_label"))) is bool(advice)


def test_a_quoted_row_of_another_separator_says_so(tmp_path: Path) -> None:
    """As spreadsheets of many countries write a .csv."""
    (tmp_path / "rows.csv").write_text('sentence;label\n"a doctor; a lawyer";1\n')
    assert "Its fields are separated by semicolons" in fault_of(tmp_path / "rows.csv")
    (tmp_path / "rows.csv").write_text('sentence,label\n"a doctor; a lawyer",1\n')
    assert not fault_of(tmp_path / "rows.csv")


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_lines_that_end_in_a_carriage_return_alone_are_named(tmp_path: Path, name: str) -> None:
    mark = "\t" if name.endswith("tsv") else ","
    for end, refused in (("\r", True), ("\r\n", False)):
        (tmp_path / name).write_bytes(f"sentence{mark}label{end}a doctor{mark}1{end}".encode())
        found = fault_of(tmp_path / name)
        assert ("found: a carriage return in a field; end lines in LF or CRLF." in found) is refused
        assert bool(found) is refused


def test_json_lines_in_a_json_file_are_told_from_a_broken_list(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert fault_of(path).endswith("expected one JSON list of objects, found an object a line; name the file .jsonl.")
    path.write_text('[\n{"a": {}\n')
    assert "line 3 column 1" in fault_of(path)
    assert not is_object_a_line('{"a": {}\n, "b": 1}\n')
    path.write_text('[{"a": 1},\n{"a": 2}]\n')
    assert not fault_of(path)


def test_a_table_that_is_named_as_plain_text_says_how_to_name_it() -> None:
    """As MRPC and SICK are published: msr_paraphrase_test.txt, SICK.txt."""
    plain = missing_column(("sentence1",), ("text",), has_columns=False)
    assert plain.endswith("a .txt file is read as one text a line. Name a file with columns .tsv.")
    assert missing_column(("sentence1",), ("text",)) == "expected a column sentence1, found text."
