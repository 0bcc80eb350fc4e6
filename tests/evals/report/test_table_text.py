"""Cells as text: as many digits as mean something, and none that fill a line."""

from __future__ import annotations

import math

import pytest

from evals.report.table_text import Cell, Span, csv_table, show


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
