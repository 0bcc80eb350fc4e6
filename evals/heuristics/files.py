"""HANS files: the pairs, and predictions on them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from evals.heuristics.grammar import LABELS, HansPair
from evals.heuristics.scores import PREDICTION_HEADER
from merge.errors import TaskError

# The columns that make a pair, in the order of its fields; parse columns are not read.
_TEXT_COLUMNS = ("pairID", "sentence1", "sentence2", "gold_label", "heuristic", "subcase", "template")


_JSON_COLUMNS = ("pairID", "premise", "hypothesis", "label", "heuristic", "subcase", "template")


def read_pairs(path: Path) -> list[HansPair]:
    """Return the pairs of a HANS file: the published table (.txt, .tsv) or JSON lines (.jsonl), either with .gz.

    Columns of the published table are found by the names in its header; quotes are plain characters.

    Raises:
        TaskError: the file is missing, empty or of another kind, or a row is malformed; rows are counted as lines.
    """
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in (".txt", ".tsv", ".jsonl"):
        raise TaskError(
            f"{path}: expected a HANS file in .txt, .tsv or .jsonl (or one of these in .gz), found {path.name!r}."
        )
    columns = _JSON_COLUMNS if kind == ".jsonl" else _TEXT_COLUMNS
    rows = _json_rows(path) if kind == ".jsonl" else _text_rows(path)
    pairs: dict[str, HansPair] = {}
    for number, row in rows:
        pair = _pair(f"{path}, row {number}", columns, row)
        if pair.pair_id in pairs:
            raise TaskError(
                f"{path}, row {number}, column {columns[0]}: expected a new id, found {pair.pair_id!r} again."
            )
        pairs[pair.pair_id] = pair
    if not pairs:
        raise TaskError(f"{path}: expected HANS pairs, found no row.")
    return list(pairs.values())


def read_predictions(path: Path) -> dict[str, str]:
    """Return the label predicted for each pair id: a header `pairID,gold_label`, then lines such as `ex0,neutral`.

    Labels are returned as they stand; `fold` makes them two.

    Raises:
        TaskError: the file is missing or has another header, or a line is malformed or repeats an id.
    """
    predictions: dict[str, str] = {}
    lines = _lines(path)
    number, header = next(lines, (1, ""))
    if header != PREDICTION_HEADER:
        raise TaskError(f"{path}, line {number}: expected the header {PREDICTION_HEADER!r}, found {header!r}.")
    for number, line in lines:
        name, comma, label = line.partition(",")
        if not (name and comma and label) or "," in label or line.split() != [line]:
            raise TaskError(
                f"{path}, line {number}: expected an id, a comma and a label, such as 'ex0,neutral', found {line!r}."
            )
        if name in predictions:
            raise TaskError(f"{path}, line {number}: expected each id once, found {name!r} again.")
        predictions[name] = label
    return predictions


def _text_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number, row) of the published table."""
    lines = _lines(path)
    number, line = next(lines, (1, ""))
    header = line.split("\t")
    if missing := [column for column in _TEXT_COLUMNS if header.count(column) != 1]:
        raise TaskError(
            f"{path}, row {number}: expected a header that names each of {', '.join(_TEXT_COLUMNS)} once, "
            f"parted by tabs; wrong for {', '.join(missing)}, found {line[:200]!r}."
        )
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise TaskError(
                f"{path}, row {number}, column {header[min(len(cells), len(header)) - 1]}: "
                f"expected {len(header)} columns, found {len(cells)}."
            )
        yield number, dict(zip(header, cells, strict=True))


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number, row) of JSON lines."""
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TaskError(
                f"{path}, row {number}, column {error.colno}: expected a JSON object, found {line[:80]!r}."
            ) from None
        if not isinstance(row, dict):
            raise TaskError(f"{path}, row {number}: expected a JSON object, found {line[:80]!r}.")
        yield number, row


def _pair(where: str, columns: tuple[str, ...], row: dict[str, object]) -> HansPair:
    """Return a row as a pair; every column must hold text, the label one of the two."""
    values = {}
    for field, column in zip(fields(HansPair), columns, strict=True):
        value = row.get(column)
        if not isinstance(value, str) or not value.strip():
            found = repr(value) if column in row else f"only {', '.join(row)}"
            raise TaskError(f"{where}, column {column}: expected text, found {found}.")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise TaskError(f"{where}, column {column}: expected Unicode text, found half of a surrogate pair.")
        if field.name == "label" and value not in LABELS:
            raise TaskError(f"{where}, column {column}: expected {' or '.join(LABELS)}, found {value!r}.")
        values[field.name] = value
    return HansPair(**values)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line) of a UTF-8 file, unpacked if its name ends in .gz."""
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield number, line.removesuffix("\n")
    except FileNotFoundError:
        raise TaskError(f"{path}: expected a file, found none.") from None
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}, after row {number}: expected UTF-8 text, found {error.reason}.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{path}, after row {number}: expected a readable file, found {error}.") from None
