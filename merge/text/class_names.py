"""Names of classes that a parquet file or a Hub data set stores as integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merge.disk.documents import checked_object, parse_json
from merge.errors import MergeError, brief


def class_names(metadata: bytes, name: str, error: type[MergeError]) -> dict[str, list[str]]:
    """Return column -> class names of a parquet file's metadata, as the datasets library writes it.

    Args:
        name: of the metadata, for errors of this class.
    """
    features = checked_object(parse_json(metadata, name, error, nul=True), name, error, {"info": "keys and values"})
    for key in ("info", "features"):
        features = checked_object(features.get(key) or {}, name, error, {})
    classes = {k: kind for k, kind in features.items() if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"}
    for column, kind in classes.items():
        names = kind.get("names")
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise error(f"{name}: the names of column {column!r} are no list of texts: {brief(repr(names))}.")
    return {column: kind["names"] for column, kind in classes.items()}


def named(row: Mapping[str, object], classes: Mapping[str, Sequence[str]]) -> Mapping[str, object]:
    """Return the row with the names of its classes for their integers; an integer that is no class (-1) stays."""
    with_names = dict(row)
    for column, names in classes.items():
        value = row.get(column)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
            with_names[column] = names[value]
    return with_names
