"""Validation errors of pydantic in the words of YAML, each with its line and column."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from merge.errors import nearest
from merge.recipe.yaml_document import position_of

# Type of a pydantic error -> message.
MESSAGES = {
    "tuple_type": "expected a list",
    "model_type": "expected keys and values",
    "dict_type": "expected keys and values",
    "string_type": "expected text; put it in quotes if it is meant as text",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "invalid_key": "a key must be text",
    "missing": "is required",
    "string_too_short": "must not be empty",
    "too_short": "must have at least one entry",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
}
# Type of a pydantic error whose message states the limit and the value.
LIMITS = {
    "literal_error": "expected {expected}, found {value!r}",
    "greater_than": "expected a number above {gt}, found {value!r}",
    "greater_than_equal": "expected a number of at least {ge}, found {value!r}",
}


def located_faults(path: Path, root: Any, record: type[BaseModel], error: ValidationError) -> str:
    """Return one line per fault of a YAML file: file:line:column: key: message.

    Args:
        root: the node tree of the file, as `read_document` returns it.
        record: the record that the file was validated as.
    """
    return "\n".join(f"{path}:{position_of(root, e['loc'])}: {fault(e, record)}" for e in error.errors())


def fault(error: Any, record: type[BaseModel]) -> str:
    """Return a fault as "key: message"; an unknown key names the nearest known one."""
    location = error["loc"]
    if error["type"] == "extra_forbidden":
        message = f"unknown key.{nearest(str(location[-1]), keys_at(record, location))}"
    elif error["type"] == "too_long":
        message = f"expected at most {error['ctx']['max_length']} entries, found {len(error['input'])}"
    else:
        message = plain_message(error)
    if location == ("settings",) and error["type"] not in MESSAGES:
        return message  # raised by the method, whose name it begins with
    return f"{'.'.join(map(str, location))}: {message}" if location else message


def plain_message(error: Any) -> str:
    """Return the message of a fault without its key."""
    kind = error["type"]
    if kind in LIMITS:
        return LIMITS[kind].format(value=error["input"], **error["ctx"])
    return MESSAGES.get(kind) or str(error["msg"]).removeprefix("Value error, ")


def keys_at(record: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the keys that the mapping which holds the last part of a location may have."""
    for key in location[:-1]:
        if isinstance(key, str) and key in record.model_fields:
            record = next(_records(record.model_fields[key].annotation), record)
    return list(record.model_fields)


def _records(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the records inside a type such as tuple[Record, ...] | None."""
    if isinstance(annotation, type) and not typing.get_args(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _records(part)
