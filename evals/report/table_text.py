"""The text of tables for the terminal, Markdown and CSV; the first row of every table is its header.

It is written here and not by rich, which wraps and shortens cells to the width of the terminal: a table that is piped into a
file holds one line a row, whole.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """An interval in one cell."""

    low: float | None
    high: float | None


# Numbers from here on are written with an exponent.
LARGE = 1e8

Cell = str | int | float | None | Span


Row = list[Cell]


def show(cell: Cell) -> str:
    """Return a cell as text: four decimals; two significant digits of smaller values, five of very large ones; – for None."""
    if isinstance(cell, Span):
        return "–" if show(cell.low) == "–" else f"{show(cell.low)} to {show(cell.high)}"
    if cell is None or cell != cell:  # what is undefined is nan when it is measured, and null in results.json
        return "–"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    if abs(cell) >= LARGE:
        return f"{cell:.4e}"
    return f"{cell:.4f}" if cell == 0 or abs(cell) >= 0.001 else f"{cell:.1e}"


def numeric_columns(rows: Sequence[Row]) -> list[bool]:
    """Return, for each column, whether its body holds numbers only; such columns are aligned right."""
    return [
        len(rows) > 1 and all(cell is None or isinstance(cell, int | float) for cell in column)
        for column in zip(*rows[1:], strict=True)
    ] or [False] * len(rows[0])


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, with the special characters of model names escaped."""
    rule = ["---:" if numeric else "---" for numeric in numeric_columns(rows)]
    header, *body = [[_markdown_cell(cell) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, rule, *body])


def plain_table(rows: Sequence[Row], width: int | None = None, in_blocks: bool = False) -> str:
    """Return the rows as text for a terminal: one line a row, numbers aligned right.

    Args:
        width: of the terminal; the header takes as many lines as it needs for the table to fit, where it can.
        in_blocks: where it cannot, the columns go below one another, in blocks that each begin with the first column.
    """
    right = numeric_columns(rows)
    cells = [[" ".join(show(cell).split()) for cell in row] for row in rows]
    if width is not None:
        cells = [*_folded_header(cells, width), *cells[1:]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    blocks = [list(range(len(widths)))] if width is None or not in_blocks else _blocks(widths, width)
    texts = []
    for block in blocks:
        lines = [
            "  ".join(row[k].rjust(widths[k]) if right[k] else row[k].ljust(widths[k]) for k in block) for row in cells
        ]
        texts.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(texts)


def _blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """Return the columns of each block: the first column, and as many of the others as a line of this width has room for."""
    blocks, used = [[0]], widths[0]
    for k in range(1, len(widths)):
        if used + 2 + widths[k] > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(k)
        used += 2 + widths[k]
    return blocks


def _folded_header(cells: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """Return the header as the fewest lines with which the table has at most `width` columns, or as narrow as it gets."""
    header, *body = cells
    needed = [max((len(row[at]) for row in body), default=0) for at in range(len(header))]
    folded: list[list[str]] = []
    for lines in range(1, max(len(title.split()) for title in header) + 1):
        folded = [_folded(title, least, lines) for title, least in zip(header, needed, strict=True)]
        widths = [max(least, *map(len, parts)) for least, parts in zip(needed, folded, strict=True)]
        if sum(widths) + 2 * (len(widths) - 1) <= width:
            break
    count = max(map(len, folded))
    return [list(line) for line in zip(*([""] * (count - len(parts)) + parts for parts in folded), strict=True)]


def _folded(title: str, least: int, lines: int) -> list[str]:
    """Return a title in at most some lines, as narrow as they make it, and no narrower than its column."""
    width = max(least, 1, *map(len, title.split()))
    while len(parts := textwrap.wrap(title, width, break_on_hyphens=False)) > lines:
        width += 1
    return parts or [""]


def csv_table(rows: Sequence[Row]) -> str:
    """Return the rows as CSV with every digit; an interval has two columns, a missing value is empty."""
    header, *body = rows
    spans = [any(isinstance(row[at], Span) for row in body) for at in range(len(header))]
    names = [[f"{name} low", f"{name} high"] if span else [name] for name, span in zip(header, spans, strict=True)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([name for pair in names for name in pair])
    for row in body:
        cells: list[Cell] = []
        for cell, span in zip(row, spans, strict=True):
            cells += [cell] if not span else [cell.low, cell.high] if isinstance(cell, Span) else [None, None]
        writer.writerow([None if cell != cell else cell for cell in cells])
    return text.getvalue()


def _markdown_cell(cell: Cell) -> str:
    text = " ".join(show(cell).split())
    for plain, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`"), ("*", "\\*"), ("_", "\\_")):
        text = text.replace(plain, safe)
    return text
