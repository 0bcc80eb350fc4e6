"""The results store of a folder, results.json.

The store is {"format": 1, "results": [record, ...]}. A record has a kind and a key; the kinds "scores" and "barrier"
have the fields in FIELDS, and other kinds are kept and listed unchanged. JSON has no nan and no infinity: a number that is
not finite (the correlation of a constant prediction, the loss of a broken merge) is stored as null. A scores record may
name the file of its predictions, relative to the folder.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from merge.disk.atomic import write_atomic
from merge.errors import TaskError, one_line

FORMAT = 1
STORE = "results.json"
LOCK_SECONDS = 30.0
# Files that take their place when they are whole. Under the lock, any that exist were left by a killed process.
UNFINISHED = (".*.tmp", "predictions/.*.tmp")

SETTING: dict[str, type] = {"task": str, "split": str, "data": str, "n": int}
FIELDS: dict[str, dict[str, type]] = {
    "scores": {**SETTING, "model": dict, "scores": dict},
    "barrier": {**SETTING, "a": dict, "b": dict, "curves": list},
}
CURVE_LISTS = ("lam", "loss", "accuracy")
CALIBRATED_LISTS = ("temperature", "calibrated")  # where temperatures were fitted
CURVE_NUMBERS = ("barrier", "barrier_lam", "epsilon", "convexity_gap", "standard_error")


def load_results(folder: Path | str) -> list[dict[str, Any]]:
    """Return the records of a folder's results.json, oldest first; none if there is no such file.

    Raises:
        TaskError: the file cannot be read, is not JSON, or holds records that lack what their kind needs.
    """
    path = Path(folder) / STORE
    try:
        store = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise TaskError(f"{path} cannot be read: {one_line(error)}") from None
    if not isinstance(store, dict) or not isinstance(store.get("results"), list):
        raise TaskError(f'{path} is not a results store: expected {{"format": {FORMAT}, "results": [...]}}.')
    if store.get("format") != FORMAT:
        raise TaskError(f"{path} has format {store.get('format')!r}; this version reads format {FORMAT}.")
    results: list[dict[str, Any]] = store["results"]
    faults = [fault for at, record in enumerate(results) for fault in _faults(record, f"results[{at}]")]
    if faults:
        raise TaskError(f"{path} holds malformed records: {'; '.join(faults)}")
    return results


def find(results: Sequence[dict[str, Any]], key: str) -> dict[str, Any] | None:
    """Return the record with this key, or None."""
    return next((record for record in results if record["key"] == key), None)


def add_result(folder: Path | str, record: Mapping[str, Any]) -> None:
    """Add a record to a folder's results.json, or replace the one with the same key.

    Processes may add records at the same time: a lock orders them, and the file is replaced whole.

    Raises:
        TaskError: the record lacks what its kind needs, or the file cannot be read, locked or written.
    """
    faults = _faults(record, "the record")
    if faults:
        raise TaskError(f"this result cannot be stored: {'; '.join(faults)}")
    added = _plain(record, f"record {record['key']!r}")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            results = load_results(folder)
            if find(results, added["key"]) is None:
                results = [*results, added]
            else:
                results = [added if old["key"] == added["key"] else old for old in results]
            text = json.dumps({"format": FORMAT, "results": results}, indent=1, ensure_ascii=False, allow_nan=False)
            write_atomic(folder / STORE, text + "\n")
    except OSError as error:
        raise TaskError(f"{folder / STORE} cannot be written: {one_line(error)}") from None


def _faults(record: object, where: str) -> list[str]:
    """Return every fault of a record, each with its position."""
    if not isinstance(record, Mapping):
        return [f"{where} is not an object"]
    faults = [f"{where} has no {name}" for name in ("kind", "key") if not isinstance(record.get(name), str)]
    if faults:
        return faults
    where = f"{where} ({record['key']})"
    for name, kind in FIELDS.get(record["kind"], {}).items():
        if not isinstance(record.get(name), kind):
            faults.append(f"{where}: {name} should be {kind.__name__}, found {type(record.get(name)).__name__}")
        elif name in ("model", "a", "b") and not isinstance(record[name].get("name"), str):
            faults.append(f"{where}: {name} has no name")
        elif name == "curves":
            faults += [
                fault for at, curve in enumerate(record[name]) for fault in _curve_faults(curve, f"{where} [{at}]")
            ]
    hans = record.get("hans")
    if record["kind"] == "scores" and hans:
        missing = [name for name in ("accuracy", "heuristics", "subcases") if name not in hans]
        faults += [f"{where}: hans has no {name}" for name in missing]
    return faults


def _curve_faults(curve: object, where: str) -> list[str]:
    if not isinstance(curve, Mapping) or not isinstance(curve.get("name"), str):
        return [f"{where}: a curve has no name"]
    lists = (*CURVE_LISTS, *(name for name in CALIBRATED_LISTS if curve.get(name)))
    lengths = [len(curve[name]) if isinstance(curve.get(name), list | tuple) else 0 for name in lists]
    faults = [f"{where}: curve has no {name}" for name in CURVE_NUMBERS if name not in curve]
    if min(lengths) < 2 or len(set(lengths)) > 1:
        faults.append(f"{where}: {', '.join(lists)} should have one length, two or more; found {lengths}")
    return faults


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


def model_labels(models: Sequence[Record]) -> list[str]:
    """Return one label a model: its name, and the start of its hash where different weights share the name."""
    weights = Counter(name for name, _ in {(model["name"], model.get("hash")) for model in models})
    return [
        f"{model['name']} ({str(model.get('hash'))[:8]})" if weights[model["name"]] > 1 else model["name"]
        for model in models
    ]
