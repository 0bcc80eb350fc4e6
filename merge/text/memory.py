"""Texts and rows that live in memory, written as JSON lines: every command and function then reads one form."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from merge.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

# A file or Hub data set id, sentences, pairs of sentences, or rows with named columns.
TextLike: TypeAlias = Union["str | os.PathLike[str] | Sequence[str] | Sequence[tuple[str, str]]", "RowsLike"]
RowsLike: TypeAlias = Union["str | os.PathLike[str] | Sequence[Mapping[str, Any]] | Dataset"]


def text_file(text: TextLike, folder: Path) -> str:
    """Return a file or Hub data set id of a text; sentences and pairs in memory are written to `folder`.

    Raises:
        UsageError: there is no text, or an entry is neither text nor a pair of texts nor a row.
    """
    if isinstance(text, str | os.PathLike):
        return os.fspath(text)
    rows = [_text_row(entry, number) for number, entry in enumerate(_entries(text, "text"))]
    return str(_write_rows(rows, folder / "sentences.jsonl"))


def rows_file(rows: RowsLike, folder: Path) -> str:
    """Return a file or Hub data set id of labelled rows; a list of dicts or a `datasets.Dataset` is written to `folder`.

    Raises:
        UsageError: there are no rows, or a row is not a mapping of column names to JSON values.
    """
    if isinstance(rows, str | os.PathLike):
        return os.fspath(rows)
    return str(_write_rows(_entries(rows, "rows"), folder / "rows.jsonl"))


def _entries(given: Any, what: str) -> Iterable[Any]:
    """Return what was given if it is a list of entries.

    Raises:
        UsageError: it is none: a table by columns, a mapping, a number.
    """
    if hasattr(given, "columns") and hasattr(given, "to_dict"):
        raise UsageError(
            f"{what}: expected a list, found a {type(given).__name__}. Give its rows (pandas: table.to_dict('records'))."
        )
    if isinstance(given, Mapping | bytes) or not isinstance(given, Iterable):
        raise UsageError(f"{what}: expected a file or a list of {what}, found a value of type {type(given).__name__}.")
    return given


def _text_row(entry: Any, number: int) -> Mapping[str, Any]:
    if isinstance(entry, str):
        return {"text": entry}
    if isinstance(entry, Mapping):
        return entry
    if isinstance(entry, tuple | list) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
        return {"text_a": entry[0], "text_b": entry[1]}
    raise UsageError(f"text {number}: expected a sentence, a pair of sentences or a row, found {type(entry).__name__}.")


def _write_rows(rows: Iterable[Any], path: Path) -> Path:
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for count, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                raise UsageError(f"row {count - 1}: expected column names with values, found {type(row).__name__}.")
            try:
                file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
            except TypeError as error:
                raise UsageError(f"row {count - 1}: {error}; give Python numbers and text.") from None
    if not count:
        raise UsageError("expected text or rows, found none.")
    return path
