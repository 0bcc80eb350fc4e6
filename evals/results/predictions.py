"""The table of a record's predictions, predictions/<key>.parquet in the results folder.

Columns: `id`, `gold` and `predicted` (class names; numbers for a regression task), and one float32 column
`logit <class>` for each of the model's classes; for HANS also `heuristic`. The metadata holds the key of the record, the
hash of the rows, and the class names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.results.store import locked
from merge.disk.atomic import replacing
from merge.disk.documents import check_regular, checked_object, parse_json, shown
from merge.errors import TaskError, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER, LOGIT, METADATA = "predictions", "logit ", b"merge-models"


@dataclass(frozen=True)
class PredictionTable:
    """The predictions of one model on every row.

    Attributes:
        key: of the record in results.json.
        rows: hash of the rows; tables of the same hash hold the same rows in the same order.
        labels: the task's class names, () for a regression task.
        classes: the model's class names, one for each column of `logits`.
        gold, predicted: index into `labels`, shape (rows,); numbers for a regression task.
        logits: shape (rows, classes).
        heuristics: of each row of HANS; () for other tasks.
    """

    key: str
    rows: str
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    gold: NDArray[Any]
    predicted: NDArray[Any]
    logits: NDArray[Any]
    heuristics: tuple[str, ...] = ()


def predictions_file(key: str) -> str:
    """Return the path of a record's predictions, relative to the folder of results.json."""
    return f"{FOLDER}/{key}.parquet"


def has_predictions(folder: Path | str | None, record: Mapping[str, Any]) -> bool:
    """Return whether the predictions of a scores record are in the folder; records of other kinds need none."""
    if record["kind"] != "scores":
        return True
    name = record.get("predictions")
    return folder is not None and isinstance(name, str) and (Path(folder) / name).is_file()


def predicted_ids(folder: Path | str, record: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the ids of the rows in the predictions file of a record; None where it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        check_regular(path := Path(folder) / record["predictions"])
        return tuple(pyarrow.parquet.read_table(path, columns=["id"]).column("id").to_pylist())
    except (OSError, KeyError, ValueError, TypeError, pyarrow.ArrowException):
        return None


def write_predictions_table(folder: Path | str, table: PredictionTable) -> Path:
    """Write a table whole or not at all and return its path.

    Raises:
        TaskError: it cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, Any] = {"id": pyarrow.array(table.ids, pyarrow.string())}
    for name, values in (("gold", table.gold), ("predicted", table.predicted)):
        columns[name] = _names(values, table.labels) if table.labels else pyarrow.array(values, pyarrow.float64())
    for name, logits in zip(table.classes, table.logits.T, strict=True):
        columns[LOGIT + name] = pyarrow.array(logits, pyarrow.float32())
    if table.heuristics:
        columns["heuristic"] = pyarrow.array(table.heuristics, pyarrow.string()).dictionary_encode()
    metadata = {"key": table.key, "rows": table.rows, "labels": table.labels, "classes": table.classes}
    parquet = pyarrow.table(columns).replace_schema_metadata({METADATA: json.dumps(metadata)})
    path = Path(folder) / predictions_file(table.key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(Path(folder)), replacing(path) as temporary:
            pyarrow.parquet.write_table(parquet, temporary, compression="zstd", write_page_checksum=True)
    except OSError as error:
        raise TaskError(f"{path} cannot be written: {one_line(error)}") from None
    return path


def read_predictions_table(path: Path | str) -> PredictionTable:
    """Return the table of a predictions file.

    Raises:
        TaskError: the file is missing, or was not written by evaluate-models.
    """
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    try:
        check_regular(path)
        with Path(path).open("rb") as file:
            table = pyarrow.parquet.read_table(file, page_checksum_verification=True)
        metadata = _metadata((table.schema.metadata or {})[METADATA], path)
        labels, classes = tuple(metadata["labels"]), tuple(metadata["classes"])
        gold, predicted = (_values(table.column(name), labels) for name in ("gold", "predicted"))
        logits = np.stack([table.column(LOGIT + name).to_numpy() for name in classes], axis=1)
        ids = tuple(table.column("id").to_pylist())
        heuristics = tuple(table.column("heuristic").to_pylist()) if "heuristic" in table.column_names else ()
        return PredictionTable(
            metadata["key"], metadata["rows"], labels, classes, ids, gold, predicted, logits, heuristics
        )
    except FileNotFoundError:
        raise TaskError(
            f"{path}: there is no such file. Score the model again with -o and the same folder to write it."
        ) from None
    except (OSError, KeyError, ValueError, TypeError, pyarrow.ArrowException) as error:
        cause = f"{type(error).__name__}: {one_line(error)}"
        raise TaskError(
            f"{path} is not a predictions file of evaluate-models ({cause}). Delete it and score again."
        ) from None


def _metadata(text: bytes, path: Path | str) -> dict[str, Any]:
    """Return the metadata of a predictions file.

    Raises:
        TaskError: an entry is missing or of another type.
    """
    name = f"{path} is not a predictions file of evaluate-models: its metadata"
    metadata = checked_object(parse_json(text, name, TaskError), name, TaskError, {})
    for key in ("key", "rows"):
        if not isinstance(metadata.get(key), str):
            raise TaskError(f"{name}: {key}: expected text, found {shown(metadata.get(key))}.")
    for key in ("labels", "classes"):
        names = metadata.get(key)
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise TaskError(f"{name}: {key}: expected a list of names, found {shown(names)}.")
    return metadata


def _names(values: Sequence[int] | NDArray[Any], labels: Sequence[str]) -> Any:
    """Return classes as a dictionary column of their names: small, and readable by other programs."""
    import pyarrow

    return pyarrow.DictionaryArray.from_arrays(pyarrow.array(values, pyarrow.int32()), list(labels))


def _values(column: Any, labels: Sequence[str]) -> NDArray[Any]:
    """Return class indices of a column of class names; the numbers themselves where there are no labels."""
    import numpy as np

    if not labels:
        return np.asarray(column.to_numpy(), dtype=np.float64)
    index = {name: k for k, name in enumerate(labels)}
    return np.array([index[name] for name in column.to_pylist()], dtype=np.int64)
