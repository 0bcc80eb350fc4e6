"""TaskTable: the files, columns and labels of a task, and the reading of its rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from evals.tasks.label_names import class_names, plain
from evals.tasks.task import EvalTask, Rows
from merge.errors import TaskError
from merge.text.columns import UNLABELLED
from merge.text.starts import missing_column
from merge.text.table import Row, Table, open_table

# Columns of row ids in the published files.
_IDS = ("idx", "index", "pairID", "pair_ID", "id")


@dataclass(frozen=True)
class Part:
    """Rows start to stop of a file with `whole` rows."""

    start: int
    stop: int
    whole: int


@dataclass(frozen=True)
class TaskTable:
    """The files, columns and labels of a task; called with a path and a seed, it reads the rows.

    Attributes:
        labels: class names in the task's integer order; none where the label is a number (regression).
        columns: the text columns; each entry lists the names that files give to one of them.
        label_columns: the names that files give to the label column.
        files: names of the split's file in a folder, in order of preference; a .txt of such a name is tab-separated.
        split: of those files and of `source`.
        source: the Hub dataset (or file) read when no path is given; None where there is none.
        folders: names of the task's folder in a folder of many tasks (the GLUE download), besides the task's name.
        coarse, aliases: other names of the classes, as in EvalTask.
        header: columns of a .tsv that has no header line.
        unlabelled: values of the label column in rows without an agreed label; such rows are left out.
        only: (column, value): rows with another value are left out; a file without the column is taken whole.
        part: the rows of the task, where `files` and `source` have more.
        part_files: names of files with the part alone.
        member: the key of the task's list in a .json file with several.
        scale: the smallest and largest number of a regression label.
        keeps_quotes: whether the published .tsv quotes fields and these quotes are part of the texts, as GLUE reads them;
            another .tsv that a csv writer quoted is read without its quotes.
    """

    name: str
    labels: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    label_columns: tuple[str, ...]
    files: tuple[str, ...]
    split: str
    source: str | None
    folders: tuple[str, ...] = ()
    coarse: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    header: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    only: tuple[str, str] | None = None
    part: Part | None = None
    part_files: tuple[str, ...] = ()
    member: str | None = None
    scale: tuple[float, float] = (-math.inf, math.inf)
    keeps_quotes: bool = False

    def __call__(self, path: Path | None, seed: int) -> Rows:
        """Return the rows of a file, a folder, or the task's own source; `seed` is not used, because no row is drawn.

        Raises:
            TaskError: there are no rows, or a row is malformed; names file, row and column.
        """
        file = None if path is None else self._file(path)
        table = self._open(file)
        names, digits, fine = class_names(self.labels, self.coarse, self.aliases), self._digits(), self._fine()
        texts: list[tuple[str, ...]] = []
        gold: list[int | float] = []
        ids: list[str] = []
        counts = {"label": 0, "value": 0, "folded": 0}
        for number, row in table.rows:
            if row is None:
                continue
            if self.only is not None and str(row.get(self.only[0], self.only[1])) != self.only[1]:
                counts["value"] += 1
                continue
            text = tuple(_text(row, column_names, table, number) for column_names in self.columns)
            column, value = self._label(row, table, number)
            if str(value).strip() in self.unlabelled:
                counts["label"] += 1
                continue
            texts.append(text)
            if self.labels:
                name = plain(str(value))
                counts["folded"] += name in fine
                gold.append(self._class(value, names.get(name, digits.get(name)), column, table, number))
            else:
                gold.append(self._number(value, column, table, number))
            ids.append(str(next((row[name] for name in _IDS if name in row), len(ids))))
        return self._rows(file, table, texts, gold, ids, counts)

    def _rows(
        self,
        file: Path | None,
        table: Table,
        texts: list[tuple[str, ...]],
        gold: list[int | float],
        ids: list[str],
        counts: dict[str, int],
    ) -> Rows:
        """Return the rows of the task; `data` states which were left out.

        Args:
            counts: of rows left out for want of a label or for their value, and of folded labels.
        """
        if not texts:
            raise TaskError(f"{table.source.name}: expected rows, found none{' with a label' * bool(counts['label'])}.")
        omitted = ""
        if self.part is not None and (file is None or _plain_name(file) not in self.part_files):
            if len(texts) != self.part.whole and (file is None or _plain_name(file) in self.files):
                raise TaskError(
                    f"{table.source.name}: expected the whole split of {self.part.whole:,} rows, of which {self.name} is "
                    f"{self.part.start:,} to {self.part.stop - 1:,}, found {len(texts):,}. Give a file of the part itself: "
                    f"{' or '.join(self.part_files)}."
                )
            if len(texts) == self.part.whole:
                kept = slice(self.part.start, self.part.stop)
                omitted = f"; rows {self.part.start:,} to {self.part.stop - 1:,} of {len(texts):,}"
                texts, gold, ids = texts[kept], gold[kept], ids[kept]
        if counts["label"]:
            omitted += f"; {_counted(counts['label'])} without a gold label left out"
        if counts["value"] and self.only is not None:
            omitted += f"; {_counted(counts['value'])} whose {self.only[0]} is not {self.only[1]} left out"
        if counts["folded"]:
            labels = f"gold label{'s' * (counts['folded'] != 1)}"
            omitted += f"; {counts['folded']:,} {labels} folded into {', '.join(sorted(set(self.coarse.values())))}"
        if len(set(ids)) != len(ids):  # prediction files need distinct ids
            twice = next(name for name, count in Counter(ids).items() if count > 1)
            ids = [str(k) for k in range(len(ids))]
            omitted += f"; ids occur twice ({twice}), so rows are numbered from 0"
        data = f"{table.title}, {_counted(len(texts))}{omitted}"
        return Rows(tuple(texts), tuple(gold), self.labels, data, self._split(file), tuple(ids))

    def _open(self, file: Path | None) -> Table:
        what = f"{self.name} data"
        if file is None:
            if self.source is None:
                raise TaskError(
                    f"{what}: the Hub has no edition that can be read; give a file such as {self.files[0]}, or its "
                    "folder, as --data."
                )
            return open_table(self.source, what, TaskError, names=self.header, member=self.member)
        name = _plain_name(file)
        kind = ".tsv" if name in (*self.files, *self.part_files) and name.endswith(".txt") else None
        header = self.header if name.endswith(".tsv") else ()
        return open_table(str(file), what, TaskError, kind, header, self.member, not self.keeps_quotes)

    def _split(self, file: Path | None) -> str:
        """Return the split of a file: the task's where the file has a name of `files`, else the name of the file."""
        if file is None or _plain_name(file) in (*self.files, *self.part_files):
            return self.split
        return Path(_plain_name(file)).stem

    def _file(self, path: Path) -> Path:
        if not path.exists():
            raise TaskError(f"{self.name} data {path}: there is no such file or folder; check the path.")
        if not path.is_dir():
            return path
        file = self.find(path)
        if file is None:
            names = ", ".join((*self.part_files, *self.files))
            expected = (
                f"expected one of {names} (or .gz) in the folder" if names else "found a folder; name one file in it"
            )
            raise TaskError(f"{self.name} data {path}: {expected}.")
        return file

    def find(self, path: Path) -> Path | None:
        """Return the task's file in a folder, or None where there is none."""
        return next((file for file in self._candidates(path) if file.is_file()), None)

    def _candidates(self, path: Path) -> Iterator[Path]:
        for folder in (path, path / self.name, *(path / name for name in self.folders)):
            for name in (*self.part_files, *self.files):
                yield from (folder / name, folder / f"{name}.gz")

    def _digits(self) -> dict[str, int]:
        """Return class indices by their digits, unless class names are digits themselves."""
        if any(name.isdigit() for name in self.labels):
            return {}
        return {str(k): k for k in range(len(self.labels))}

    def _fine(self) -> set[str]:
        """Return the names of classes that are finer than the task's."""
        fine = {plain(name) for name in self.coarse} - {plain(name) for name in self.labels}
        return fine | {plain(alias) for alias, name in self.aliases.items() if plain(name) in fine}

    def _label(self, row: Row, table: Table, number: int) -> tuple[str, object]:
        name = next((column for column in self.label_columns if column in row), None)
        if name is None:
            raise table.fault(number, missing_column(self.label_columns, tuple(row), table.has_columns))
        return name, row[name]

    def _class(self, value: object, index: int | None, column: str, table: Table, number: int) -> int:
        if index is not None and not isinstance(value, bool | float):
            return index
        names = f"{', '.join(self.labels)}{f' or 0 to {len(self.labels) - 1}' if self._digits() else ''}"
        raise TaskError(
            f"{_position(table, number, column)}: expected {names}, found {value!r}. {_label_advice(value)}"
        )

    def _number(self, value: object, column: str, table: Table, number: int) -> float:
        low, high = self.scale
        try:
            label = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        except ValueError:
            label = math.nan
        if not (math.isfinite(label) and low <= label <= high):
            expected = f"a number from {low:g} to {high:g}" if math.isfinite(high) else "a finite number"
            raise TaskError(f"{_position(table, number, column)}: expected {expected}, found {value!r}.")
        return label


def make_task(table: TaskTable, metric: str) -> EvalTask:
    """Return the task of a table, with a metric of METRICS."""
    source = f"--data {table.files[0]}" if table.source is None else table.source
    return EvalTask(table.name, table.labels, table, metric, table.coarse, table.aliases, source, table.scale)


def _plain_name(file: Path) -> str:
    return file.name.removesuffix(".gz")


def _counted(rows: int) -> str:
    return f"{rows:,} row{'s' * (rows != 1)}"


def _position(table: Table, number: int, column: str) -> str:
    return f"{table.source.name}, {table.place} {number}, column {column}"


def _label_advice(value: object) -> str:
    """Return what to do about a value that is no class of the task."""
    text = str(value).strip()
    if isinstance(value, bool | float):
        return f"A {type(value).__name__} is no class: write its name, or a whole number."
    if text == "-1":
        return "Test splits have no labels; use validation."
    if text in UNLABELLED:
        return "Such a row has no label: leave it out, or name the split that has labels."
    return "If these are other names of the classes, give them in a task file of your own (aliases, coarse)."


def _text(row: Row, names: tuple[str, ...], table: Table, number: int) -> str:
    name = next((n for n in names if n in row), None)
    if name is None:
        raise table.fault(number, missing_column(names, tuple(row), table.has_columns))
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{_position(table, number, name)}: expected text, found {value!r}.")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise TaskError(f"{_position(table, number, name)}: expected Unicode text, found half of a surrogate pair.")
    if (
        value[:2] in ("b'", 'b"') and len(value) > 3 and value[-1] == value[1]
    ):  # as the script that makes PAWS-QQP writes it
        raise TaskError(
            f"{_position(table, number, name)}: expected text, found bytes as Python prints them: {value[:40]!r}. "
            "Write the decoded text (bytes.decode) where the file is made."
        )
    return value
