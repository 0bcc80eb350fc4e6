"""Tables through their own door: what the caller decides, and what calibration text does not reach."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from merge.errors import CalibrationError, MergeError, TaskError, brief, listed
from merge.text.table import Source, Table, open_table, text_table


def rows_of(path: Path, kind: str | None = None) -> list[tuple[int, dict[str, object] | None]]:
    table = open_table(str(path), "sample data", TaskError, kind)
    return [(number, None if row is None else dict(row)) for number, row in table.rows]


def fails(source: str, error: type[MergeError] = TaskError, what: str = "sample data", kind: str | None = None) -> str:
    """Assert that reading is one line of the caller's own error, begun with what the caller calls it."""
    with pytest.raises(MergeError) as caught:
        list(open_table(source, what, error, kind).rows)
    message = str(caught.value)
    assert type(caught.value) is error
    assert message.startswith(f"{what} ")
    assert "\n" not in message
    return message


# ---- the kind ----


@pytest.mark.parametrize(
    ("kind", "text", "row"),
    [
        (".tsv", 'a\tb\n"x\ty\n', {"a": '"x', "b": "y"}),
        (".csv", 'a,b\n"x, y",z\n', {"a": "x, y", "b": "z"}),
        (".jsonl", '{"a": 1}\n', {"a": 1}),
        (".txt", "a\tb\n", {"text": "a\tb"}),
    ],
)
@pytest.mark.parametrize("name", ["data", "data.txt", "data.tsv", "data.jsonl"])
def test_the_kind_wins_over_the_files_ending(
    tmp_path: Path, kind: str, text: str, row: dict[str, object], name: str
) -> None:
    """Some sets ship a table as .txt; the caller who knows says so, and the ending counts for nothing."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [found for _, found in rows_of(tmp_path / name, kind)][-1] == row


def test_the_kind_leaves_compression_to_the_ending(tmp_path: Path) -> None:
    """A .gz is unpacked whatever it holds."""
    (tmp_path / "data.txt.gz").write_bytes(gzip.compress(b"a\tb\n1\t2\n"))
    assert rows_of(tmp_path / "data.txt.gz", ".tsv") == [(2, {"a": "1", "b": "2"})]
    assert [row for _, row in rows_of(tmp_path / "data.txt.gz")] == [{"text": "a\tb"}, {"text": "1\t2"}]


def test_an_unknown_kind_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("x\n", encoding="utf-8")
    known = "expected a file ending in .txt, .jsonl, .csv, .tsv, .json, one of these and .gz, or .parquet"
    assert known in fails(str(tmp_path / "data.txt"), kind=".xml")


def test_plain_text_has_lines_and_tables_have_rows(tmp_path: Path) -> None:
    """What reports call a row follows the kind, not the ending."""
    (tmp_path / "data.txt").write_text("a\n1\n", encoding="utf-8")

    def words(kind: str | None) -> tuple[str, str, bool]:
        table = open_table(str(tmp_path / "data.txt"), "sample data", TaskError, kind)
        return table.unit, table.place, table.has_columns

    assert words(None) == ("line", "line", False)
    assert words(".tsv") == ("row", "line", True)


# ---- the error ----


@pytest.mark.parametrize("error", [TaskError, CalibrationError])
@pytest.mark.parametrize("what", ["mnli data", "calibration text"])
def test_every_fault_is_the_callers_error_under_the_callers_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[MergeError], what: str
) -> None:
    """Of a name, a path, a folder, a format, a line, bytes and the Hub: one reader for many, and each speaks for itself."""
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("{\n", encoding="utf-8")
    Path("a.tsv").write_text("x\ty\n1\n", encoding="utf-8")
    Path("a.docx").write_text("x", encoding="utf-8")
    Path("b.txt").write_bytes(b"\xff\n")
    Path("c.txt.gz").write_bytes(b"no gzip")
    messages = [
        fails(source, error, what)
        for source in ("", " ", "none.txt", ".", "a.docx", "a.jsonl", "a.tsv", "b.txt", "c.txt.gz", "no-such/name")
    ]
    assert len(set(messages)) == 10
    assert f"{what} a.jsonl, line 1: " in messages[5]
    assert f"{what} a.tsv, line 2: " in messages[6]


@pytest.mark.parametrize("name", ["", " ", "\t\n"])
def test_an_empty_name_says_so(name: str) -> None:
    """The path of an empty name is the working folder, which nobody meant."""
    assert "the name is empty; give a file or a Hub dataset" in fails(name)


def test_a_fault_of_the_caller_reads_like_one_of_the_table(tmp_path: Path) -> None:
    """A caller that finds a bad value points at it in the table's own words: lines of a file, rows of the Hub."""
    (tmp_path / "a.csv").write_text("x\n1\n", encoding="utf-8")
    table = open_table(str(tmp_path / "a.csv"), "sample data", TaskError)
    fault = table.fault(2, "expected 2, found 1.")
    assert type(fault) is TaskError
    assert str(fault) == f"sample data {tmp_path / 'a.csv'}, line 2: expected 2, found 1."
    assert str(Table(table.source, "t", iter(()), place="row").fault(7, "bad")).endswith("a.csv, row 7: bad")


# ---- rows ----


def test_rows_are_numbered_by_the_line_they_start_on(tmp_path: Path) -> None:
    """The header is line 1, blank rows count, and a quoted field may run over lines."""
    (tmp_path / "a.csv").write_text('\nx,y\n1,"two\nlines"\n\n3,4\n', encoding="utf-8")
    assert rows_of(tmp_path / "a.csv") == [(3, {"x": "1", "y": "two\nlines"}), (5, None), (6, {"x": "3", "y": "4"})]


@pytest.mark.parametrize(
    ("name", "line"),
    [("a.tsv", "x\ty\r\n1\t2\r\n"), ("a.csv", "x,y\r\n1,2\r\n"), ("a.jsonl", '{"x": "1", "y": "2"}\r\n')],
)
def test_windows_line_ends_are_no_part_of_a_value(tmp_path: Path, name: str, line: str) -> None:
    (tmp_path / name).write_bytes(line.encode())
    assert [row for _, row in rows_of(tmp_path / name)] == [{"x": "1", "y": "2"}]


def test_a_line_separator_inside_a_text_is_no_line_end(tmp_path: Path) -> None:
    """U+2028 and U+0085 end lines for str.splitlines, but not in a file of rows."""
    (tmp_path / "a.tsv").write_text("x\ty\none\u2028more\t1\x85\n", encoding="utf-8")
    assert rows_of(tmp_path / "a.tsv") == [(2, {"x": "one\u2028more", "y": "1\x85"})]


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    """A fault on the second line does not keep the first from being read: memory holds one row."""
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{\n', encoding="utf-8")
    rows = open_table(str(tmp_path / "a.jsonl"), "sample data", TaskError).rows
    assert next(rows) == (1, {"x": 1})
    with pytest.raises(TaskError, match="line 2"):
        next(rows)


def test_a_text_that_is_no_file_is_read_alike(tmp_path: Path) -> None:
    """A package's resource is opened by whoever knows how; its lines and faults are those of a file."""
    path = tmp_path / "text"
    path.write_bytes(b"one\n\nt\xffwo\n")
    table = text_table(Source("the package's own text", TaskError), "own text", lambda: path.open("rb"))
    assert (table.title, table.unit) == ("own text", "line")
    assert next(table.rows) == (1, {"text": "one"})
    assert next(table.rows) == (2, None)
    with pytest.raises(TaskError, match="the package's own text, line 3: expected UTF-8 text, found byte 0xff"):
        next(table.rows)


def test_long_texts_are_cut_in_messages() -> None:
    """One line, never longer than asked for, and the cut is seen."""
    assert brief("a\n b\t c") == "a b c"
    assert brief("x" * 60) == "x" * 60
    assert brief("x" * 61) == "x" * 57 + "..."
    assert len(brief("word " * 100, 20)) == 20
    assert listed(["a", "b\nc"]) == "a, b c"
    assert listed([]) == "nothing"


# ---- tables without a header ----


@pytest.mark.parametrize(("suffix", "mark"), [(".tsv", "\t"), (".csv", ",")])
def test_names_stand_in_for_a_header_that_is_not_there(tmp_path: Path, suffix: str, mark: str) -> None:
    """The first line is a row then; without names, the control, it is the header."""
    path = tmp_path / f"a{suffix}"
    path.write_text(f"x{mark}1\ny{mark}2\n", encoding="utf-8")
    named = [row for _, row in open_table(str(path), "data", TaskError, names=("text", "label")).rows]
    assert named == [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}]
    assert [row for _, row in open_table(str(path), "data", TaskError).rows] == [{"x": "y", "1": "2"}]


def test_a_first_line_with_one_of_the_names_is_a_header_after_all(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("label\tmore\n1\tx\n", encoding="utf-8")
    rows = open_table(str(path), "data", TaskError, names=("text", "label")).rows
    assert list(rows) == [(2, {"label": "1", "more": "x"})]


def test_a_row_with_fewer_fields_than_names_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("x\t1\ny\n", encoding="utf-8")
    with pytest.raises(TaskError, match=r"line 2: expected 2 fields \(text, label\), found 1"):
        list(open_table(str(path), "data", TaskError, names=("text", "label")).rows)


# ---- .json ----


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_json_list_is_a_table(tmp_path: Path, name: str) -> None:
    """Objects in one list, or in one of several lists by name; rows are counted from 1."""
    text = json.dumps({"first": [{"x": 1}], "second": [{"x": 2}, {"x": 3}]})
    write = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
    (tmp_path / name).write_bytes(write)
    table = open_table(str(tmp_path / name), "data", TaskError, member="second")
    assert (table.place, table.unit) == ("row", "row")
    assert list(table.rows) == [(1, {"x": 2}), (2, {"x": 3})]
    (tmp_path / "b.json").write_text('[{"x": 2}, {"x": 3}]', encoding="utf-8")
    for member in (None, "second"):
        assert list(open_table(str(tmp_path / "b.json"), "d", TaskError, member=member).rows)[1] == (2, {"x": 3})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[{]", "cannot be read: it is malformed"),
        ('{"third": []}', "expected a list named 'second', found third"),
        ('{"second": 5}', "expected a JSON list of objects, found 5"),
        ('[{"x": 1}, 2]', "row 2: expected a JSON object"),
    ],
)
def test_a_malformed_json_table_is_one_line(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(TaskError, match=found) as caught:
        list(open_table(str(tmp_path / "a.json"), "data", TaskError, member="second").rows)
    assert "\n" not in str(caught.value)


# ---- .parquet, and classes that are stored as integers ----


def classes(rows: int) -> Any:
    """Return a data set whose label is stored as an integer, -1 for none, under the names b (0) and a (1)."""
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["b", "a"])})
    labels = [k % 3 - 1 for k in range(rows)]
    return datasets.Dataset.from_dict({"text": [f"t{k}" for k in range(rows)], "label": labels}, features=features)


def test_a_parquet_file_is_a_table_whose_classes_go_by_name(tmp_path: Path) -> None:
    """More rows than are read at once; a label that is no class stays what it is."""
    classes(2500).to_parquet(tmp_path / "a.parquet")
    found = rows_of(tmp_path / "a.parquet")
    assert [number for number, _ in found] == list(range(1, 2501))
    expected = [{"text": f"t{k}", "label": (-1, "b", "a")[k % 3]} for k in range(2500)]
    assert [row for _, row in found] == expected
    assert open_table(str(tmp_path / "a.parquet"), "data", TaskError).place == "row"


def test_a_parquet_file_without_names_keeps_its_integers(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"x": [1, 0], "y": ["a", None]}), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == [(1, {"x": 1, "y": "a"}), (2, {"x": 0, "y": None})]


def test_a_broken_parquet_file_is_one_line(tmp_path: Path) -> None:
    classes(10).to_parquet(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for broken in (b"", b"x", whole[:-20]):
        (tmp_path / "a.parquet").write_bytes(broken)
        assert "row 1: cannot be read" in fails(str(tmp_path / "a.parquet"))


def test_a_hub_datasets_classes_go_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the integers is the data set's own affair; a table's reader sees names."""
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: classes(3))
    rows = open_table("org/name", "data", TaskError).rows
    assert [row["label"] for _, row in rows if row is not None] == [-1, "b", "a"]
