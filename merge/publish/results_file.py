"""results.json as evaluate-models writes it: its records, checked against a schema wherever the file is read.

The file is {"format": 1, "results": [record, ...]}. A record has a kind and a key; the kinds "scores", "barrier",
"line" and those of INSIDE and SURFACES have the fields below, and other kinds are kept as they are. A number that is not
finite is stored as null. Records of INSIDE and SURFACES have many more fields, which tables and figures index: a checksum
says that they are as they were written. One that is not is set aside, and what it holds is measured again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from merge.disk.checksums import NOT_AS_WRITTEN, with_checksum, without_checksum
from merge.disk.documents import read_json, shown
from merge.errors import MergeError, brief, some

FORMAT = 1
SETTING: dict[str, type] = {"task": str, "split": str, "data": str, "n": int}
INSIDE = ("features", "similarity", "lesion", "linearity", "stitch")
SURFACES = ("plane", "monotonic", "curve", "simplex")
FIELDS: dict[str, dict[str, type]] = {
    "scores": {**SETTING, "model": dict, "scores": dict},
    "barrier": {**SETTING, "a": dict, "b": dict, "curves": list},
    "line": {**SETTING, "a": dict, "b": dict, "curves": list},
    **{kind: {**SETTING, "models": list} for kind in (*INSIDE, *SURFACES)},
}
CURVE_LISTS = ("lam", "loss", "accuracy")
CALIBRATED_LISTS = ("temperature", "calibrated")  # where temperatures were fitted
CURVE_NUMBERS = ("barrier", "barrier_lam", "epsilon", "convexity_gap", "standard_error")
CHECKED = frozenset((*INSIDE, *SURFACES))
MAX_FAULTS = 5  # that a message lists


class _Part(BaseModel):
    """A part of a record: its fields have these types, and further ones are kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Model(_Part):
    name: str
    hash: str | None = None


class _Interval(_Part):
    low: float | None
    high: float | None
    standard_error: float | None
    level: float
    method: str


class _Hans(_Part):
    accuracy: float | None
    heuristics: dict[str, dict[str, float | None]]
    subcases: dict[str, float | None]
    templates: dict[str, float | None] = Field(default_factory=dict)
    counts: dict[str, Any] | None = None


class _Curve(_Part):
    name: str
    lam: list[float]
    loss: list[float | None]
    accuracy: list[float | None]
    barrier: float | None
    barrier_lam: float | None
    epsilon: float | None
    convexity_gap: float | None
    convexity_interval: list[float] | None = Field(default=None, min_length=3, max_length=3)
    standard_error: float | None
    temperature: list[float | None] | None = None
    calibrated: list[float | None] | None = None
    calibrated_barrier: float | None = None


class _Alignment(_Part):
    moved: dict[str, Annotated[list[int], Field(min_length=2, max_length=2)]] = Field(default_factory=dict)
    quality: dict[str, Any] | None = None


class _Common(_Part):
    kind: str
    key: str = Field(min_length=1)
    task: str
    split: str
    data: str
    n: int = Field(ge=0)
    rows: str | None = None
    labels: list[str] | None = None
    notes: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    seconds: float | None = None


class _Scores(_Common):
    model: _Model
    scores: dict[str, float | None]
    intervals: dict[str, _Interval | None] = Field(default_factory=dict)
    hans: _Hans | None = None
    predictions: str | None = None

    @field_validator("predictions")
    @classmethod
    def _inside(cls, name: str | None) -> str | None:
        if name is not None and (PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts):
            raise ValueError("expected the path of a file in the folder of results.json")
        return name


class _Barrier(_Common):
    a: _Model
    b: _Model
    curves: list[_Curve] = Field(min_length=1)
    alignment: _Alignment | None = None


class _Summary(_Part):
    name: str
    value: float | None
    standard_error: float | None
    at: list[float]
    source: str


class _LineCurve(_Curve):
    head: str
    summaries: list[_Summary] = Field(min_length=1)


class _Line(_Common):
    a: _Model
    b: _Model
    curves: list[_LineCurve] = Field(min_length=1)
    alignment: _Alignment | None = None


class _Models(_Common):
    models: list[_Model] = Field(min_length=1)


SCHEMAS: dict[str, type[_Common]] = {
    "scores": _Scores,
    "barrier": _Barrier,
    "line": _Line,
    **dict.fromkeys((*INSIDE, *SURFACES), _Models),
}


@dataclass(frozen=True)
class Results:
    """What a results.json holds.

    Attributes:
        records: oldest first.
        set_aside: records of INSIDE and SURFACES that are not as they were written; they stay in the file.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    set_aside: list[dict[str, Any]] = field(default_factory=list)

    def warn(self, path: Path) -> None:
        """Log a line that names the records that are set aside."""
        if self.set_aside:
            names = some([f"{record['kind']} ({brief(record['key'])})" for record in self.set_aside], MAX_FAULTS)
            logging.getLogger(__name__).warning(
                "%s: not used, and measured again where it is asked for: %s; %s.", path, names, NOT_AS_WRITTEN
            )

    def stored(self) -> list[dict[str, Any]]:
        """Return all records as the file has them."""
        return [*self.set_aside, *(with_checksum(r) if r["kind"] in CHECKED else r for r in self.records)]


def read_results(path: Path, error: type[MergeError]) -> list[dict[str, Any]]:
    """Return the records of a results.json, oldest first; errors as those of `read_store`."""
    return read_store(path, error).records


def read_store(path: Path, error: type[MergeError]) -> Results:
    """Return what a results.json holds.

    Raises:
        MergeError: of the class `error`: the file cannot be read, or is not what evaluate-models writes.
    """
    store = read_json(path, error)
    if not isinstance(store, dict) or not isinstance(store.get("results"), list):
        raise error(
            f'{path} is not a results store of evaluate-models: expected {{"format": {FORMAT}, "results": [...]}}, found '
            f"{shown(store)}."
        )
    if store.get("format", FORMAT) != FORMAT:
        raise error(f"{path} has format {shown(store['format'])}; this version reads format {FORMAT}.")
    set_aside, results = list[dict[str, Any]](), list[Any]()
    for record in store["results"]:
        named = isinstance(record, dict) and all(isinstance(record.get(n), str) for n in ("kind", "key"))
        checked = named and not CHECKED.isdisjoint((record["kind"], kind_of(record["key"])))
        whole = without_checksum(record) if checked else record
        if checked and whole is None:
            set_aside.append(record)
        else:
            results.append(whole)
    faults = [fault for at, record in enumerate(results) for fault in record_faults(record, f"results[{at}]")]
    if faults:
        more = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
        raise error(
            f"{path} holds malformed records, which evaluate-models did not write: {'; '.join(faults[:MAX_FAULTS])}{more}"
        )
    return Results(results, set_aside)


def kind_of(key: str) -> str:
    """Return the kind of a record by its key: the word before the hash of what was measured, as evaluate-models writes it."""
    return key.split("-")[0] if "-" in key else ""


def record_faults(record: object, where: str) -> list[str]:
    """Return every fault of a record, each with its position."""
    if not isinstance(record, Mapping):
        return [f"{where} is not an object"]
    faults = [f"{where} has no {name}" for name in ("kind", "key") if not isinstance(record.get(name), str)]
    if faults:
        return faults
    where = f"{where} ({brief(record['key'])})"
    if kind_of(record["key"]) in FIELDS and kind_of(record["key"]) != record["kind"]:
        return [f"{where}: kind should be {kind_of(record['key'])}, found {shown(record['kind'])}"]
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
    if record["kind"] == "scores" and isinstance(hans, Mapping):
        missing = [name for name in ("accuracy", "heuristics", "subcases") if name not in hans]
        faults += [f"{where}: hans has no {name}" for name in missing]
    return faults or _schema_faults(record, where)


def _curve_faults(curve: object, where: str) -> list[str]:
    if not isinstance(curve, Mapping) or not isinstance(curve.get("name"), str):
        return [f"{where}: a curve has no name"]
    lists = (*CURVE_LISTS, *(name for name in CALIBRATED_LISTS if curve.get(name)))
    lengths = [len(curve[name]) if isinstance(curve.get(name), list | tuple) else 0 for name in lists]
    faults = [f"{where}: curve has no {name}" for name in CURVE_NUMBERS if name not in curve]
    if min(lengths) < 2 or len(set(lengths)) > 1:
        faults.append(f"{where}: {', '.join(lists)} should have one length, two or more; found {lengths}")
    return faults


def _schema_faults(record: Mapping[str, Any], where: str) -> list[str]:
    schema = SCHEMAS.get(record["kind"])
    if schema is None:
        return []
    try:
        schema.model_validate(dict(record))
    except ValidationError as error:
        return [_sentence(each, where) for each in error.errors()]
    return []


def _sentence(error: Any, where: str) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{where}: {name} is missing"
    words = str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: {name}: {words[:1].lower()}{words[1:]}, found {shown(error['input'])}"
