"""The records of a sweep: one parquet file for each model, each pair and each average that was measured.

A file has one line for each point: `lam` (null for a single model), `loss` (float32, one a row of the task) and, where the task
has classes, `correct`. Its metadata states what was measured, by content and not by name, so that the same measurement gives the
same bytes; its name is the key of that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from merge.disk.atomic import replacing
from merge.disk.checksums import with_checksum, without_checksum
from merge.disk.documents import parse_json
from merge.errors import MergeError, OutputError, first_line

FOLDER, METADATA = "sweep", b"merge-models"
FORMAT = 1


@dataclass(frozen=True)
class RowLosses:
    """The losses of every row at each point of a line, or of one model.

    Attributes:
        lam: of each point; None for a model that is on no line.
        losses: shape (points, rows).
        correct: whether each row is right, of the same shape; None where the task asks for a number.
        facts: what was measured: hashes, task, rows; of a pair also the distance of the weights.
    """

    lam: tuple[float | None, ...]
    losses: Float32[np.ndarray, "points rows"] = field(repr=False)
    correct: Bool[np.ndarray, "points rows"] | None = field(repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)


def record_path(store: Path, key: str) -> Path:
    """Return the file of a record: its kind, the first word of the key, is the folder."""
    return store / FOLDER / key.split("-")[0] / f"{key}.parquet"


def write_record(store: Path, key: str, record: RowLosses) -> None:
    """Write a record whole or not at all.

    Raises:
        OutputError: the disk is full, or the folder is not writable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = record.losses.shape[1]
    columns = {
        "lam": pa.array(record.lam, pa.float64()),
        "loss": pa.FixedSizeListArray.from_arrays(pa.array(record.losses.reshape(-1), pa.float32()), rows),
    }
    if record.correct is not None:
        columns["correct"] = pa.FixedSizeListArray.from_arrays(pa.array(record.correct.reshape(-1)), rows)
    facts = json.dumps(with_checksum({"format": FORMAT, "key": key, **record.facts}), sort_keys=True)
    table = pa.table(columns).replace_schema_metadata({METADATA: facts.encode()})
    path = record_path(store, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            pq.write_table(table, temporary, write_page_checksum=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_line(error)}") from error


def read_record(store: Path, key: str, rows: int) -> RowLosses | None:
    """Return a record; None where there is none, or one that cannot be used: it is then measured again.

    Args:
        rows: of the task.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = record_path(store, key)
    if not path.is_file():
        return None
    try:
        # Without memory mapping: a file that is replaced meanwhile stays whole.
        table = pq.read_table(path, memory_map=False, page_checksum_verification=True)
        facts = _facts(table.schema)
        losses = _matrix(table["loss"], np.float32, rows)
        correct = _matrix(table["correct"], np.bool_, rows) if "correct" in table.column_names else None
        lam = tuple(None if value is None else float(value) for value in table["lam"].to_pylist())
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, MergeError):
        return None
    if not isinstance(facts, dict) or facts.get("key") != key or facts.get("format") != FORMAT:
        return None
    return RowLosses(lam, losses, correct, facts)


def _facts(schema: Any) -> Any:
    """Return what is written beside the columns; None where it is not as it was written.

    Raises:
        KeyError: nothing is.
        OutputError: it is not JSON.
    """
    return without_checksum(parse_json((schema.metadata or {})[METADATA], "a record of a sweep", OutputError))


def _matrix(column: Any, dtype: Any, rows: int) -> Any:
    """Return a column of lists as an array.

    Raises:
        ValueError: it has no lists, or they are not of this many rows.
    """
    from pyarrow import types

    if not (types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type)):
        raise ValueError(f"expected lists, found {column.type}")
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    return flat.reshape(len(column), rows)


def is_stored(store: Path, key: str) -> bool:
    """Return whether a record is there, by the end of its file alone: one that was cut short is not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = record_path(store, key)
    if not path.is_file():
        return False
    try:
        facts = _facts(pq.read_schema(path))
    except (pa.ArrowException, OSError, KeyError, ValueError, MergeError):
        return False
    return isinstance(facts, dict) and facts.get("key") == key and facts.get("format") == FORMAT
