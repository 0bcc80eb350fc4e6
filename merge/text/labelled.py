"""Labelled texts from a file or Hub dataset, and the index of each label in a model's logits, matched by name."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.labels import class_names
from merge.errors import CalibrationError, MismatchError, listed, nearest
from merge.text.columns import UNLABELLED, choose_columns
from merge.text.source import TextSource
from merge.text.starts import header_advice
from merge.text.table import Row, Table, open_table


@dataclass(frozen=True)
class Examples:
    """Labelled texts.

    Attributes:
        texts: (text,) or (text, text_pair).
        labels: the name of each text's class, as the data has it.
        source: a phrase for reports: file, number of rows, columns, seed.
        notes: how many rows were left out.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()


def gold_of(examples: Examples, model: Checkpoint) -> list[int]:
    """Return the class of every example as its index in the model's logits; names are compared without regard to case.

    Raises:
        MismatchError: a label is none of the model's classes, or a class occurs twice.
    """
    names = class_names(model.structure) or ()
    indices = {name.strip().casefold(): k for k, name in enumerate(names)}
    if len(indices) < len(names):
        raise MismatchError(f"{model.source}: a label occurs twice in id2label: {', '.join(names)}.")
    unknown = sorted({label for label in examples.labels if label.casefold() not in indices})
    if unknown:
        raise MismatchError(
            f"labels of {examples.source} are no classes of {model.source}: {listed(unknown[:5])}; its classes: "
            f"{listed(names)}. Classes are matched by name: write these names into the label column, or set id2label."
        )
    return [indices[label.casefold()] for label in examples.labels]


def draw_examples(text_source: TextSource, label_column: str) -> Examples:
    """Return labelled examples drawn at random from the whole of a file or Hub dataset.

    Raises:
        CalibrationError: a column is missing, or no row has a label.
    """
    assert text_source.source is not None, "the package's own text has no labels"
    table = open_table(text_source.source, "labelled examples", CalibrationError)
    rows: list[tuple[tuple[str, ...], str]] = []
    left_out, columns = 0, tuple[str, ...]()
    for number, row in table.rows:
        if row is None:
            continue
        columns = columns or choose_columns(table, tuple(row), text_source.columns)
        _check_columns(table, number, row, (*columns, label_column))
        texts, label = tuple(_text(row[column]) for column in columns), _text(row[label_column]).strip()
        if all(map(str.strip, texts)) and label not in UNLABELLED:
            rows.append((texts, label))
        else:
            left_out += 1
    if not rows:
        raise CalibrationError(f"{table.source.name}: expected rows with text and a label, found none.")
    samples, seed = text_source.samples, text_source.seed
    kept = rows if len(rows) <= samples else random.Random(seed).sample(rows, samples)
    source = f"{table.title}: {len(kept):,} of {len(rows):,} labelled {table.unit}s, column {' + '.join(columns)}, seed {seed}"
    notes = (f"{left_out:,} {table.unit}s of {table.title} have no text or no label and were left out",)
    return Examples(
        tuple(texts for texts, _ in kept), tuple(label for _, label in kept), source, notes if left_out else ()
    )


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _check_columns(table: Table, number: int, row: Row, columns: Iterable[str]) -> None:
    for column in columns:
        if column not in row:
            raise table.fault(number, f"no column {column!r}.{nearest(column, row)}{header_advice(tuple(row))}")
