"""Cells as text: as many digits as mean something, and none that fill a line."""

from __future__ import annotations

import pytest

from evals.report.table_text import Cell, show


@pytest.mark.parametrize(
    ("cell", "text"),
    [(0.0, "0.0000"), (0.00012, "1.2e-04"), (-1.5, "-1.5000"), (12345.6, "12345.6000"), (2.9394e39, "2.9394e+39"),
     (-3e8, "-3.0000e+08"), (10**12, "1,000,000,000,000"), (None, "–")],
)  # fmt: skip
def test_very_large_and_very_small_numbers_have_an_exponent(cell: Cell, text: str) -> None:
    assert show(cell) == text
