"""Cells as text: as many digits as mean something, and none that fill a line."""

from __future__ import annotations

import math

import pytest

from evals.commands import show as shown
from evals.report.table_text import Cell, Row, Span, csv_table, plain_table, show

WIDE: list[Row] = [
    ["model", *(f"score {k} of the task" for k in range(12))],
    ["first", *(k / 7 for k in range(12))],
    ["second", *(k / 9 for k in range(12))],
]


@pytest.mark.parametrize(
    ("cell", "text"),
    [(0.0, "0.0000"), (0.00012, "1.2e-04"), (-1.5, "-1.5000"), (12345.6, "12345.6000"), (2.9394e39, "2.9394e+39"),
     (-3e8, "-3.0000e+08"), (10**12, "1,000,000,000,000"), (None, "–"), (math.nan, "–"), (Span(math.nan, math.nan), "–"),
     (Span(None, None), "–"), (Span(0.1, 0.25), "0.1000 to 0.2500")],
)  # fmt: skip
def test_very_large_and_very_small_numbers_have_an_exponent(cell: Cell, text: str) -> None:
    assert show(cell) == text


def test_what_is_undefined_is_an_empty_cell_of_a_csv() -> None:
    """Measured just now it is nan, read from results.json null: the table is the same."""
    tables = [csv_table([["a", "b"], ["x", Span(no, no)], ["y", no], ["z", 0.5]]) for no in (math.nan, None)]
    assert tables[0] == tables[1] == "a,b low,b high\nx,,\ny,,\nz,,\n"


@pytest.mark.parametrize("width", [30, 80, 200])
def test_columns_that_do_not_fit_go_below_one_another_each_with_the_first(width: int) -> None:
    """Every cell is there once, whole; the control is the table in one piece."""
    text = plain_table(WIDE, width, in_blocks=True)
    assert max(map(len, text.splitlines())) <= width
    blocks = text.split("\n\n")
    assert all(
        block.splitlines()[-2].startswith("first ") and block.splitlines()[-1].startswith("second") for block in blocks
    )
    for row in WIDE[1:]:
        found = [
            cell
            for block in blocks
            for line in block.splitlines()
            if line.startswith(str(row[0]))
            for cell in line.split()[1:]
        ]
        assert found == [show(cell) for cell in row[1:]]
    assert (len(blocks) == 1) == (width == 200)
    assert max(map(len, plain_table(WIDE).splitlines())) > 200


def test_a_column_wider_than_the_line_stands_alone_and_whole() -> None:
    rows: list[Row] = [["a", "b", "c"], ["x", "w" * 50, "y"]]
    assert [line.split() for line in plain_table(rows, 20, in_blocks=True).splitlines() if line] == [
        ["a", "b"], ["x", "w" * 50], ["a", "c"], ["x", "y"],
    ]  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_fit_a_terminal_and_are_whole_in_a_file(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    shown.show_tables([WIDE], "plain")
    lines = capsys.readouterr().out.splitlines()
    assert (max(map(len, lines)) <= 60) == terminal
    assert (len(lines) == 3) != terminal
