"""A table that a csv writer quoted is told from one whose quotes are text."""

from __future__ import annotations

import csv
import io
import random

import pytest

from merge.text.quoting import is_quoted

HEADER = ["sentence", "label"]


def saved(rows: list[list[str]], quoting: int = csv.QUOTE_MINIMAL) -> list[str]:
    """Return the lines that a csv writer makes of rows, as pandas does."""
    text = io.StringIO()
    csv.writer(text, delimiter="\t", quoting=quoting, lineterminator="\n").writerows([HEADER, *rows])  # type: ignore[arg-type]
    return text.getvalue().splitlines(keepends=True)


def test_random_tables_of_a_writer_are_recognised_and_joined_ones_are_not() -> None:
    """Fields of quotes and words, written by csv or joined as they are: only the first kind is quoted."""
    generator = random.Random(0)
    for _ in range(100):
        texts = ["".join(generator.choices('ab "', k=generator.randint(1, 8))) for _ in range(5)]
        texts.append('say "no')
        rows = [[text, "1"] for text in texts]
        assert is_quoted(saved(rows))
        assert not is_quoted(["\t".join(row) + "\n" for row in [HEADER, *rows]])


@pytest.mark.parametrize(
    "lines",
    [
        ["a\tb\n", "plain\t1\n"],
        ["a\tb\n", '"lone\t1\n', 'the next"\t1\n'],
        ["a\tb\n", '"needs none"\t1\n'],
        ["a\tb\n", '"never closed\t1\n'],
        ["a\tb\n", '"runs over\n', 'lines"\t1\n'],
        ["a\tb\n", '"holds\ta tab"\t1\n'],
        [],
    ],
)
def test_quotes_that_no_writer_makes_are_text(lines: list[str]) -> None:
    assert not is_quoted(lines)


def test_windows_line_ends_and_quotes_around_everything_are_recognised() -> None:
    assert is_quoted([line.replace("\n", "\r\n") for line in saved([['say "no"', "1"]])])
    assert is_quoted(saved([["plain", "1"]], csv.QUOTE_ALL))
