"""The results store of a folder, results.json.

The store is {"format": 1, "results": [record, ...]}. A record has a kind and a key; the kinds "scores", "barrier" and
"line" have the fields of merge.publish.results_file, and other kinds are kept and listed unchanged. JSON has no nan and no
infinity: a number that is not finite (the correlation of a constant prediction, the loss of a broken merge) is stored as
null. A scores record may name the file of its predictions, relative to the folder.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from merge.disk.atomic import write_atomic
from merge.disk.checksums import NOT_AS_WRITTEN, without_checksum
from merge.disk.documents import read_json, shown
from merge.errors import TaskError, one_line
from merge.publish.results_file import FORMAT, Results, read_store, record_faults

STORE, BASINS = "results.json", "basins.json"
LOCK_SECONDS = 30.0
# Files that take their place when they are whole. Under the lock, any that exist were left by a killed process.
UNFINISHED = (".*.tmp", "predictions/.*.tmp")


def load_results(folder: Path | str, warn: bool = False) -> list[dict[str, Any]]:
    """Return the records of a folder's results.json, oldest first; none if there is no such file.

    Args:
        warn: log the records that are set aside, as they are not as they were written.
    Raises:
        TaskError: the file cannot be read, is not JSON, or holds records that lack what their kind needs.
    """
    store = _load(Path(folder))
    if warn:
        store.warn(Path(folder) / STORE)
    return store.records


def _load(folder: Path) -> Results:
    return read_store(folder / STORE, TaskError) if (folder / STORE).exists() else Results()


def load_basins(folder: Path | str) -> dict[str, Any] | None:
    """Return the record of a folder's sweep over many models, basins.json; None if there is no such file.

    Raises:
        TaskError: the file cannot be read, holds another thing, or is not as it was written.
    """
    path = Path(folder) / BASINS
    if not path.exists():
        return None
    record = read_json(path, TaskError)
    if not isinstance(record, dict) or record.get("kind") != "basins":
        raise TaskError(
            f"{path} is not a record of evaluate-models basins: expected kind 'basins', found {shown(record)}."
        )
    whole = without_checksum(record)
    if whole is None:
        raise TaskError(
            f"{path} is not used: {NOT_AS_WRITTEN}. Run evaluate-models basins with -o {folder} again: the pairs that are "
            "there are not measured again."
        )
    return whole


def usable_basins(folder: Path) -> dict[str, Any] | None:
    """Return `load_basins`; None, and a line in the log, where basins.json cannot be used: the page is whole without it."""
    try:
        return load_basins(folder)
    except TaskError as error:
        logging.getLogger(__name__).warning("The page of %s has no basins. %s", folder, error)
        return None


def find(results: Sequence[dict[str, Any]], key: str) -> dict[str, Any] | None:
    """Return the record with this key, or None."""
    return next((record for record in results if record["key"] == key), None)


def add_result(folder: Path | str, record: Mapping[str, Any]) -> None:
    """Add a record to a folder's results.json, or replace the one with the same key: `add_results` of one record."""
    add_results(folder, [record])


def add_results(folder: Path | str, records: Sequence[Mapping[str, Any]]) -> None:
    """Add records to a folder's results.json, or replace those with the same keys.

    Processes may add records at the same time: a lock orders them, and the file is replaced whole.

    Raises:
        TaskError: a record lacks what its kind needs, or the file cannot be read, locked or written.
    """
    added = [_plain(record, f"record {record.get('key')!r}") for record in records]
    faults = [fault for record in added for fault in record_faults(record, "the record")]
    if faults:
        raise TaskError(f"this result cannot be stored: {'; '.join(faults)}")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            before = _load(folder)
            by_key = {record["key"]: record for record in [*before.records, *added]}
            set_aside = [_plain(record, "a record") for record in before.set_aside if record["key"] not in by_key]
            stored = Results(list(by_key.values()), set_aside).stored()
            text = json.dumps({"format": FORMAT, "results": stored}, indent=1, ensure_ascii=False, allow_nan=False)
            write_atomic(folder / STORE, text + "\n")
    except OSError as error:
        raise TaskError(f"{folder / STORE} cannot be written: {one_line(error)}") from None


def _plain(value: Any, where: str) -> Any:
    """Return the value as JSON can represent it, with null for a number that is not finite."""
    if isinstance(value, Mapping):
        return {str(name): _plain(child, f"{where}, {name}") for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child, f"{where}[{at}]") for at, child in enumerate(value)]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise TaskError(f"{where} is a {type(value).__name__}, which JSON cannot represent; store a Python number.")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a results folder, which one process at a time can; wait LOCK_SECONDS for another to finish.

    The lock is the kernel's: that of a killed process is gone with it, and its half-written files are removed.

    Raises:
        TaskError: another process holds the lock for longer.
        OSError: the folder is missing or not writable.
    """
    from filelock import FileLock, Timeout

    path = folder / f"{STORE}.lock"
    lock = FileLock(path, LOCK_SECONDS, poll_interval=0.01)
    try:
        lock.acquire()
    except Timeout:
        raise TaskError(
            f"{path} has been held for {LOCK_SECONDS:g} s: another process is writing to {folder}. Try again when it is done."
        ) from None
    try:
        for unfinished in [file for pattern in UNFINISHED for file in folder.glob(pattern)]:
            unfinished.unlink(missing_ok=True)
        yield
    finally:
        with suppress(PermissionError):  # Windows refuses while the file is open
            path.unlink(missing_ok=True)
        lock.release()


Record = Mapping[str, Any]


def record_labels(records: Sequence[Record]) -> list[str]:
    """Return one label a scores record: `model_labels`, and how the model was run where one was run in several ways."""
    labels = model_labels([record["model"] for record in records])
    counts, whole = Counter(labels), list[str]()
    for label, record in zip(labels, records, strict=True):
        tokens, names = record.get("max_length"), record.get("stated")
        how = [str(record["dtype"])] if record.get("dtype") else []
        how += [f"--max-length {tokens}"] if tokens else []
        how += [f"--labels {','.join(map(str, names))}"] if isinstance(names, list) else []
        whole.append(f"{label} ({', '.join(how)})" if counts[label] > 1 and how else label)
    return whole


def model_labels(models: Sequence[Record]) -> list[str]:
    """Return one label a model: its name, and the start of its hash where different weights share the name."""
    weights = Counter(name for name, _ in {(model["name"], model.get("hash")) for model in models})
    return [
        f"{model['name']} ({str(model.get('hash'))[:8]})" if weights[model["name"]] > 1 else model["name"]
        for model in models
    ]
