"""Arguments of the Python API: a value of another type than a function states is refused in one line, before anything is read."""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from merge.errors import UsageError, brief
from merge.methods.checks import LARGEST

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Kind:
    """What values of a type are called, one and many, and whether a value is one."""

    one: str
    many: str
    holds: Callable[[Any], bool]


KINDS = {
    "None": Kind("None", "None", lambda value: value is None),
    "bool": Kind(
        "True or False", "True or False", lambda value: type(value).__name__ in ("bool", "bool_")
    ),  # numpy's too
    "int": Kind("a whole number", "whole numbers", lambda value: _is_whole(value)),
    "float": Kind("a number", "numbers", lambda value: _is_number(value, numbers.Real)),
    "str": Kind("text", "texts", lambda value: isinstance(value, str)),
    "os.PathLike[str]": Kind("a path", "paths", lambda value: isinstance(value, os.PathLike)),
    "Units": Kind(
        "text such as '0:1,2' or a mapping of layers to lists of numbers",
        "",
        lambda value: (
            isinstance(value, str)
            or (
                isinstance(value, Mapping)
                and all(map(_is_list, value.values()))
                and all(map(_is_whole, _numbers(value)))
            )
        ),
    ),
    **{
        name: Kind(f"a result ({name})", "", lambda value, name=name: _is_of(value, name))  # type: ignore[misc]
        for name in ("Recipe", "Scores", "WrittenModel")
    },
    "Any": Kind("anything", "values", lambda value: True),
}

# The least value of numbers that have one name and one meaning in all functions; others are checked where they are read.
LEAST = {
    **dict.fromkeys(("gauss_rows", "heal_steps", "reorders", "ridge", "seed", "tolerance", "verify", "volume"), 0),
    **dict.fromkeys(
        ("beam", "bends", "draws", "last", "limit", "max_length", "path_texts", "paths", "processes", "rank"), 1
    ),
    **dict.fromkeys(("rounds", "rows_a_step", "samples", "steps", "threads", "tune_rounds", "vertices"), 1),
}


def checked(function: F) -> F:
    """Return a function that refuses arguments of other types than its annotations name.

    Types of ours (models, texts, rows) are left to those that read them, who say more.

    Raises:
        UsageError: by the function that is returned: names the argument, what is expected and what was found.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            given = inspect.signature(function).bind(*args, **kwargs).arguments
        except TypeError:  # a missing or an unknown argument: Python's own words are the best
            return function(*args, **kwargs)
        check_arguments(function, given)
        return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def check_arguments(annotated: Any, given: Mapping[str, Any]) -> None:
    """Raise UsageError for a value of another type than the annotation of that name, of a function or a class, states."""
    for name, value in given.items():
        kinds = [_kind(each) for each in _alternatives(annotated.__annotations__.get(name, "Any"))]
        if None in kinds or any(kind.holds(value) for kind in kinds if kind):
            _check_number(name, value)
            continue
        raise UsageError(f"{name}: expected {' or '.join(kind.one for kind in kinds if kind)}, found {found(value)}.")


def _check_number(name: str, value: Any) -> None:
    """Raise UsageError for a number that is below the least of its name, or none (NaN), or infinite."""
    if not _is_number(value, numbers.Real):
        return
    if not abs(value) <= LARGEST:
        raise UsageError(f"{name} must be a finite number, found {brief(str(value))}.")
    if value < LEAST.get(name, value):
        raise UsageError(f"{name} must be at least {LEAST[name]}, found {value}.")


def found(value: Any) -> str:
    """Return a value as an error shows it: numbers, texts and lists themselves, of everything else the type."""
    if value is None or isinstance(value, str | bytes | int | float | list | tuple | dict | set):
        return brief(repr(value))
    return f"a value of type {type(value).__name__}"


def _alternatives(annotation: str) -> list[str]:
    """Return the members of a union: 'str', 'Sequence[int | None]', 'None'."""
    return [part.strip() for part in re.split(r"\|(?![^\[]*\])", annotation)]


def _kind(annotation: str) -> Kind | None:
    """Return the kind of values that a type stands for; None for a type of ours."""
    if annotation in KINDS:
        return KINDS[annotation]
    outer, _, inner = annotation.removesuffix("]").partition("[")
    if outer == "Mapping":
        return Kind("a mapping", "mappings", lambda value: isinstance(value, Mapping))
    if outer == "Callable":
        return Kind("a function", "functions", callable)
    if annotation == "tuple[int, int]":
        whole = KINDS["int"].holds
        return Kind("two whole numbers", "", lambda v: _is_list(v) and len(v) == 2 and all(map(whole, v)))
    item = _kind(inner) if outer == "Sequence" else None
    if item is None:
        return None
    return Kind(
        f"a list of {item.many}", f"lists of {item.many}", lambda value: _is_list(value) and all(map(item.holds, value))
    )


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_number(value, numbers.Integral)


def _numbers(units: Mapping[Any, Any]) -> list[Any]:
    """Return the layers and the numbers of units, all in one list."""
    return [number for layer, chosen in units.items() for number in (layer, *chosen)]


def _is_of(value: Any, name: str) -> bool:
    """Return whether a value is of a class of ours, which need not be imported for it."""
    return any(each.__name__ == name for each in type(value).__mro__)


def _is_list(value: Any) -> bool:
    """Return whether a value is a list of others: a list, a tuple, an array, a column of a table."""
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | bytes | Mapping)
