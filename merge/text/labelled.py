"""Examples: labelled texts from a file or Hub dataset, and the place of each label in a model's logits, found by name."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.labels import class_names
from merge.errors import CalibrationError, MismatchError, nearest
from merge.text.calibration import PAIR_COLUMNS, TEXT_COLUMNS, UNLABELLED
from merge.text.table import Row, Table, listed, open_table


@dataclass(frozen=True)
class Examples:
    """Labelled texts.

    Attributes:
        texts: (text,) or (text, text_pair).
        labels: the name of each text's class, as the data has it.
        source: where they came from, for reports.
        notes: what was left out.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()


def gold_of(examples: Examples, model: Checkpoint) -> list[int]:
    """Return the class of every example by its place in the model's own logits; names without regard to case.

    Raises:
        MismatchError: a label is none of the model's classes, or a class stands twice.
    """
    names = class_names(model.structure) or ()
    places = {name.strip().casefold(): k for k, name in enumerate(names)}
    if len(places) < len(names):
        raise MismatchError(f"{model.source}: a label stands twice in id2label: {', '.join(names)}.")
    unknown = sorted({label for label in examples.labels if label.casefold() not in places})
    if unknown:
        raise MismatchError(
            f"labels of {examples.source} are no classes of {model.source}: {listed(unknown[:5])}; its classes: "
            f"{listed(names)}. Classes are matched by name: write these names into the label column, or set id2label."
        )
    return [places[label.casefold()] for label in examples.labels]


def draw_examples(
    source: str, text_columns: tuple[str, ...] | None, label_column: str, samples: int, seed: int
) -> Examples:
    """Return labelled examples drawn at random from the whole of a file or Hub dataset.

    Args:
        text_columns: one column (text) or two (a pair); the only well-known choice if None.
    Raises:
        CalibrationError: a column is missing, or no row has a label.
    """
    table = open_table(source, "labelled examples", CalibrationError)
    rows: list[tuple[tuple[str, ...], str]] = []
    left_out, columns = 0, text_columns or ()
    for number, row in table.rows:
        if row is None:
            continue
        columns = columns or _text_columns(table, row)
        _check_columns(table, number, row, (*columns, label_column))
        texts, label = tuple(_text(row[column]) for column in columns), _text(row[label_column])
        if all(texts) and label not in UNLABELLED:
            rows.append((texts, label))
        else:
            left_out += 1
    if not rows:
        raise CalibrationError(f"{table.source.name}: expected rows with text and a label, found none.")
    kept = rows if len(rows) <= samples else random.Random(seed).sample(rows, samples)
    said = f"{table.title}: {len(kept):,} of {len(rows):,} labelled {table.unit}s, column {' + '.join(columns)}, seed {seed}"
    notes = (f"{left_out:,} {table.unit}s of {table.title} have no text or no label and were left out",)
    return Examples(
        tuple(texts for texts, _ in kept), tuple(label for _, label in kept), said, notes if left_out else ()
    )


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _check_columns(table: Table, number: int, row: Row, columns: Iterable[str]) -> None:
    for column in columns:
        if column not in row:
            raise table.fault(number, f"no column {column!r}.{nearest(column, row)}")


def _text_columns(table: Table, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the only well-known text column or pair of the first row."""
    pairs = [pair for pair in PAIR_COLUMNS if set(pair) <= set(row)]
    paired = {name for pair in pairs for name in pair}
    choices = [*pairs, *((name,) for name in TEXT_COLUMNS if name in row and name not in paired)]
    if len(choices) != 1:
        raise CalibrationError(
            f"{table.source.name}: expected one well-known text column or pair, found {len(choices)}. Name it: "
            f"text_column. Its columns: {listed(row)}."
        )
    return choices[0]
