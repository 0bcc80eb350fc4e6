"""Records of a sweep: what is written is read, the same measurement gives the same bytes, and damage is seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.clusters.sweep.records import METADATA, RowLosses, is_stored, read_record, record_path, write_record

KEY = "pairs-0123"


def record(seed: int = 0, classes: bool = True) -> RowLosses:
    generator = np.random.default_rng(seed)
    losses = generator.random((3, 5), dtype=np.float32)
    return RowLosses((0.25, 0.5, 0.75), losses, losses < 0.5 if classes else None, {"distance": 1.5, "a": "x"})


@pytest.mark.parametrize("classes", [True, False])
def test_a_record_is_read_as_it_was_written(tmp_path: Path, classes: bool) -> None:
    """And by pyarrow alone: a line a point, a list of float32 with one loss a row."""
    written = record(classes=classes)
    write_record(tmp_path, KEY, written)
    read = read_record(tmp_path, KEY, 5)
    assert read is not None
    assert read.lam == written.lam
    assert read.losses.dtype == np.float32
    assert np.array_equal(read.losses, written.losses)
    assert (read.correct is None) == (not classes)
    assert read.correct is None or np.array_equal(read.correct, written.correct)
    assert read.facts["distance"] == 1.5
    table = pq.read_table(record_path(tmp_path, KEY))
    assert table["loss"][1].as_py() == written.losses[1].tolist()
    assert json.loads(table.schema.metadata[METADATA])["key"] == KEY


def test_the_same_measurement_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_record(tmp_path / name, KEY, record(seed))
        files.append(record_path(tmp_path / name, KEY).read_bytes())
    assert files[0] == files[1] != files[2]


def test_the_record_of_a_model_is_on_no_line(tmp_path: Path) -> None:
    losses = np.ones((1, 5), np.float32)
    write_record(tmp_path, "ends-0123", RowLosses((None,), losses, None))
    read = read_record(tmp_path, "ends-0123", 5)
    assert read is not None
    assert read.lam == (None,)


def test_a_damaged_record_is_not_used(tmp_path: Path) -> None:
    """Cut short, of other bytes inside, of another key, of other rows; the record as it was is used (control)."""
    write_record(tmp_path, KEY, record())
    path = record_path(tmp_path, KEY)
    whole = path.read_bytes()
    assert is_stored(tmp_path, KEY)
    assert read_record(tmp_path, KEY, 4) is None
    path.write_bytes(whole[: len(whole) // 2])
    assert not is_stored(tmp_path, KEY)
    assert read_record(tmp_path, KEY, 5) is None
    at = whole.index(record().losses[0].tobytes()[:4])
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert read_record(tmp_path, KEY, 5) is None
    path.write_bytes(whole)
    assert read_record(tmp_path, KEY, 5) is not None
    table = pq.read_table(path)
    for was, becomes in ((b"1.5", b"9.5"), (b"1.5", b'"x"'), (b'"checksum"', b'"x"')):
        facts = table.schema.metadata[METADATA]
        pq.write_table(table.replace_schema_metadata({METADATA: facts.replace(was, becomes)}), path)
        assert not is_stored(tmp_path, KEY)
        assert read_record(tmp_path, KEY, 5) is None
    path.write_bytes(whole)
    path.rename(record_path(tmp_path, "pairs-4567"))
    assert not is_stored(tmp_path, "pairs-4567")
    assert read_record(tmp_path, "pairs-4567", 5) is None
    assert not is_stored(tmp_path, KEY)


@pytest.mark.parametrize(
    ("name", "values"),
    [("correct", [True]), ("loss", [0.5]), ("loss", [{"a": 1}]), ("lam", [[1.0]])],
)
def test_a_record_whose_columns_are_of_other_kinds_is_not_used(name: str, values: list[object], tmp_path: Path) -> None:
    """As of a file that another program wrote anew. The control: the same file with its own columns."""
    write_record(tmp_path, "key", record())
    path = record_path(tmp_path, "key")
    table = pq.read_table(path)
    pq.write_table(table, path)
    rows = record().losses.shape[1]
    assert read_record(tmp_path, "key", rows) is not None
    other = table.set_column(table.column_names.index(name), name, pa.array(values * len(table)))
    pq.write_table(other, path)
    assert read_record(tmp_path, "key", rows) is None
