"""HANS files: the pairs, and predictions on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from evals.heuristics.grammar import LABELS, HansPair
from evals.heuristics.scores import PREDICTION_HEADER
from merge.errors import TaskError, listed
from merge.text.starts import header_advice
from merge.text.table import Source, Table, file_table

# The columns that make a pair, in the order of its fields, in the authors' table and as the Hub has them; parse columns are
# not read. The Hub's files have no ids, and integers for labels.
TABLE_COLUMNS = ("pairID", "sentence1", "sentence2", "gold_label", "heuristic", "subcase", "template")
JSON_COLUMNS = ("pairID", "premise", "hypothesis", "label", "heuristic", "subcase", "template")
ENDINGS = (".txt", ".tsv", ".jsonl", ".json", ".csv", ".parquet")
INTEGER_LABELS = {str(k): label for k, label in enumerate(LABELS)}


def read_pairs(path: Path) -> list[HansPair]:
    """Return the pairs of a HANS file: the published table (.txt, .tsv), or rows as the Hub has them, each also with .gz.

    Columns are found by their names, the authors' or the Hub's; quotes in a table are plain characters. Rows without pairID are
    numbered as the published set is, ex0 on.

    Raises:
        TaskError: the file is missing, empty or of another kind, or a row is malformed.
    """
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in ENDINGS:
        raise TaskError(
            f"{path}: expected a HANS file in {', '.join(ENDINGS)} (or one of these in .gz), found {path.name!r}."
        )
    table = _table(path, ".tsv" if kind == ".txt" else kind)
    columns = TABLE_COLUMNS if kind in (".txt", ".tsv") else JSON_COLUMNS
    pairs: dict[str, HansPair] = {}
    numbered: bool | None = None
    for number, row in table.rows:
        if row is None:
            raise table.fault(number, "expected a HANS pair, found a blank line.")
        if numbered is None:
            numbered = columns[0] not in row
        pair = _pair(table, number, columns, {**row, columns[0]: f"ex{len(pairs)}"} if numbered else row)
        if pair.pair_id in pairs:
            raise table.fault(number, f"column {columns[0]}: expected a new id, found {pair.pair_id!r} again.")
        pairs[pair.pair_id] = pair
    if not pairs:
        raise TaskError(f"{path}: expected HANS pairs, found no row.")
    return list(pairs.values())


def read_predictions(path: Path) -> dict[str, str]:
    """Return the label predicted for each pair id: a header `pairID,gold_label`, then lines such as `ex0,neutral`.

    Labels are returned as they are written; `evals.tasks.hans.fold` folds three into two.

    Raises:
        TaskError: the file is missing or has another header, or a line is malformed or repeats an id.
    """
    table = _table(path, ".txt")
    lines = ((number, "" if row is None else str(row["text"]).rstrip("\r\n")) for number, row in table.rows)
    number, header = next(lines, (1, ""))
    if header != PREDICTION_HEADER:
        raise table.fault(number, f"expected the header {PREDICTION_HEADER!r}, found {header!r}.")
    predictions: dict[str, str] = {}
    for number, line in lines:
        pair_id, comma, label = line.partition(",")
        if not (pair_id and comma and label) or "," in label or line.split() != [line]:
            raise table.fault(number, f"expected an id, a comma and a label, such as 'ex0,neutral', found {line!r}.")
        if pair_id in predictions:
            raise table.fault(number, f"expected each id once, found {pair_id!r} again.")
        predictions[pair_id] = label
    return predictions


def _table(path: Path, kind: str) -> Table:
    if not path.exists():
        raise TaskError(f"{path}: expected a file, found none.")
    return file_table(Source(str(path), TaskError), path, kind)


def _pair(table: Table, number: int, columns: tuple[str, ...], row: Mapping[str, object]) -> HansPair:
    """Return a row as a pair; every column must hold text, the label one of the two or its number."""
    # Where one of the names is missing, its other one may be there.
    others = dict(zip((*TABLE_COLUMNS, *JSON_COLUMNS), (*JSON_COLUMNS, *TABLE_COLUMNS), strict=True))
    columns = tuple(column if column in row or others[column] not in row else others[column] for column in columns)
    if missing := [column for column in columns if column not in row]:
        found = [name for name in row if name != columns[0]]  # where ids are numbered, they are no column of the file
        message = f"expected columns {', '.join(columns)}, found {listed(row)}: no {listed(missing)}."
        raise table.fault(number, message + header_advice(found, missing))
    values = {}
    for field, column in zip(fields(HansPair), columns, strict=True):
        value = row[column]
        if field.name == "label":
            value = value if isinstance(value, bool) else INTEGER_LABELS.get(str(value), value)
            if value not in LABELS:
                raise table.fault(
                    number, f"column {column}: expected {' or '.join(LABELS)} (or 0 or 1), found {value!r}."
                )
        if not isinstance(value, str) or not value.strip():
            raise table.fault(number, f"column {column}: expected text, found {value!r}.")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise table.fault(number, f"column {column}: expected Unicode text, found half of a surrogate pair.")
        values[field.name] = value
    return HansPair(**values)
