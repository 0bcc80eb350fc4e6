"""GLUE tasks: rows from the Hub, from GLUE's own folders (.tsv) or from jsonl and csv files.

Source: Wang et al. 2019, arXiv:1804.07461. Label order as in GLUE on the Hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from evals.task import EvalTask, Rows
from merge.errors import TaskError
from merge.table import Row, open_table

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTable:
    """Where a GLUE task keeps its rows.

    Attributes:
        columns: the text columns' names; each entry lists the names they go by.
        label_columns: the names the label column goes by.
        files: what the file of the split is called in a folder, first found first.
        hub: dataset configuration and split.
    """

    name: str
    labels: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    label_columns: tuple[str, ...]
    files: tuple[str, ...]
    hub: tuple[str, str]

    def __call__(self, path: Path | None, seed: int) -> Rows:
        """Read the split from a file, a folder, or the Hub; `seed` is not used, nothing is drawn."""
        file = None if path is None else self._file(path)
        source = f"{HUB}:{self.hub[0]}/{self.hub[1]}" if file is None else str(file)
        table = open_table(source, f"{self.name} data", TaskError)
        texts: list[tuple[str, ...]] = []
        gold: list[int] = []
        ids: list[str] = []
        for number, row in table.rows:
            if row is None:
                continue
            where = f"{self.name} data {source}, {table.place} {number}"
            texts.append(tuple(_text(row, names, where) for names in self.columns))
            gold.append(self._label(row, where))
            ids.append(str(row.get("idx", row.get("index", row.get("pairID", len(ids))))))
        if not texts:
            raise TaskError(f"{self.name} data {source}: expected rows, found none.")
        data = f"{table.title}, {len(texts):,} rows"
        return Rows(tuple(texts), tuple(gold), self.labels, data, self._split(file), tuple(ids))

    def _split(self, file: Path | None) -> str:
        """Return which split a file holds by its name: GLUE's own where it has GLUE's name, else what it is called."""
        name = self.files[0] if file is None else file.name.removesuffix(".gz")
        return self.hub[1] if name in self.files else Path(name).stem

    def _file(self, path: Path) -> Path:
        if not path.exists():
            raise TaskError(f"{self.name} data {path}: there is no such file or folder; check the path.")
        if not path.is_dir():
            return path
        found = [path / name for name in self._names() if (path / name).is_file()]
        if not found:
            raise TaskError(f"{self.name} data {path}: expected one of {', '.join(self.files)} (or .gz) in the folder.")
        return found[0]

    def _names(self) -> Iterator[str]:
        for name in self.files:
            yield from (name, f"{name}.gz")

    def _label(self, row: Row, where: str) -> int:
        name = next((c for c in self.label_columns if c in row), None)
        if name is None:
            raise TaskError(f"{where}: expected a column {' or '.join(self.label_columns)}, found {', '.join(row)}.")
        value = row[name]
        if isinstance(value, str) and value.strip() in self.labels:
            return self.labels.index(value.strip())
        if str(value).strip() in {str(k) for k in range(len(self.labels))}:
            return int(str(value))
        known = f"{', '.join(self.labels)} or 0 to {len(self.labels) - 1}"
        raise TaskError(
            f"{where}, column {name}: expected {known}, found {value!r}. Test splits carry no labels; use validation."
        )


def _text(row: Mapping[str, object], names: tuple[str, ...], where: str) -> str:
    name = next((n for n in names if n in row), None)
    if name is None:
        raise TaskError(f"{where}: expected a column {' or '.join(names)}, found {', '.join(row)}.")
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{where}, column {name}: expected text, found {value!r}.")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise TaskError(f"{where}, column {name}: expected Unicode text, found half of a surrogate pair.")
    return value.strip()


MNLI = EvalTask(
    "mnli",
    ("entailment", "neutral", "contradiction"),
    GlueTable(
        name="mnli",
        labels=("entailment", "neutral", "contradiction"),
        columns=(("premise", "sentence1"), ("hypothesis", "sentence2")),
        label_columns=("gold_label", "label"),
        files=("validation_matched.jsonl", "dev_matched.tsv"),
        hub=("mnli", "validation_matched"),
    ),
)

SST2 = EvalTask(
    "sst2",
    ("negative", "positive"),
    GlueTable(
        name="sst2",
        labels=("negative", "positive"),
        columns=(("sentence",),),
        label_columns=("label",),
        files=("validation.jsonl", "dev.tsv"),
        hub=("sst2", "validation"),
    ),
)
