"""Columns of text in a table: those that were asked for, or the only well-known choice."""

from __future__ import annotations

from collections.abc import Sequence

from merge.errors import CalibrationError, brief, listed, nearest
from merge.text.starts import header_advice
from merge.text.table import Table

TEXT_COLUMNS = ("text", "sentence", "content")
PAIR_COLUMNS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text_a", "text_b"),
)
CLASS_COLUMNS = ("label", "gold_label", "labels", "class")  # of the class of a text
LABEL_COLUMNS = (*CLASS_COLUMNS, "subcase", "heuristic")
UNLABELLED = ("", "-", "-1", "None")  # how data sets mark a row without a label


def check_columns(table: Table, columns: Sequence[str]) -> None:
    """Stop before a row is read where columns cannot be those of a text or a pair.

    Raises:
        CalibrationError: the table has no columns, or they are not one, nor two different ones.
    """
    asked = " + ".join(columns)
    if not table.has_columns:
        raise CalibrationError(
            f"{table.source.name}: column {asked!r} was asked for, but it has no columns, one text a line; "
            "leave the columns out, or give a .jsonl, .csv or .tsv file."
        )
    if len(columns) not in (1, 2) or len(set(columns)) < len(columns):
        raise CalibrationError(
            f"{table.source.name}: expected one column (text) or two different ones (a pair), "
            f"found {len(columns)}: {asked!r}."
        )


def choose_columns(table: Table, header: Sequence[str], columns: Sequence[str] | None) -> tuple[str, ...]:
    """Return the columns asked for, or the only well-known text column or pair among those of the header.

    Raises:
        CalibrationError: a column is missing, or there are several well-known ones, or none.
    """
    if columns is not None:
        unknown = [column for column in columns if column not in header]
        if unknown:
            hints = " ".join(
                f'no column "{brief(column)}".{nearest(brief(column), map(brief, header))}' for column in unknown
            )
            raise CalibrationError(f"{table.source.name}: {hints}{header_advice(header)}")
        return tuple(columns)
    pairs = [pair for pair in PAIR_COLUMNS if set(pair) <= set(header)]
    paired = {name for pair in pairs for name in pair}  # QNLI's sentence is half of its pair, not a text of its own
    choices = [*pairs, *((name,) for name in TEXT_COLUMNS if name in header and name not in paired)]
    if len(choices) == 1:
        return choices[0]
    found = f"more than one ({', '.join(' + '.join(choice) for choice in choices)})" if choices else "none"
    raise CalibrationError(
        f"{table.source.name}: expected one well-known text column or pair, found {found}; name one column, "
        f"or two for a pair. Its columns: {listed(header)}.{header_advice(header)}"
    )
