"""Strict YAML: duplicate keys are errors, 1e-3 is a number, every error has its line and column."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from merge.errors import RecipeError

# Errors of int("x") and the like that PyYAML raises unwrapped for a document with !!int x.
TAG_ERRORS = (ValueError, TypeError, LookupError, AttributeError)


def read_document(path: Path, what: str = "recipe", keys: str = "models, method, ...") -> tuple[dict[str, Any], Any]:
    """Return a YAML file's mapping, and its node tree, in which `position_of` finds lines and columns.

    Args:
        what, keys: the kind of file and some of its keys, for error messages.
    Raises:
        RecipeError: the file cannot be read, is not YAML or not a mapping; as file:line:column: message.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{what} {path} cannot be read: {error}") from error
    try:
        root = yaml.compose(text, Loader=_StrictLoader)
        values = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise RecipeError(f"{position}: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        raise RecipeError(f"{path}:{line}:{column}: character {error.character!r} is not allowed in YAML") from error
    except TAG_ERRORS as error:
        raise RecipeError(f"{path}:1:1: a YAML tag (!!int, !!float, ...) does not fit its value: {error}") from error
    if not isinstance(values, dict):
        kind = "an empty file" if values is None else f"a {type(values).__name__}"
        raise RecipeError(f"{path}:1:1: a {what} is a mapping of keys ({keys}), found {kind}.")
    return values, root


def read_value(text: str) -> Any:
    """Return the value of a YAML text: a number, true or false, text, or a list.

    Raises:
        RecipeError: it is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, *TAG_ERRORS) as error:
        raise RecipeError(f"{text!r} is not valid YAML. Put it in quotes if it is meant as text.") from error


def dump(record: dict[str, Any]) -> str:
    """Return a record as YAML that `read_document` reads back as an equal record."""
    text: str = yaml.dump(record, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


class _StrictLoader(yaml.SafeLoader):
    """YAML loader that refuses duplicate keys and reads 1e-3 as a number (text in YAML 1.1) and a date as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's name and form
        letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return dict(super().construct_mapping(node, deep))


class _Dumper(yaml.SafeDumper):
    """YAML dumper that quotes text which `_StrictLoader` would not read as text."""


for _resolver in (_StrictLoader, _Dumper):
    _resolver.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def position_of(node: Any, path: tuple[int | str, ...]) -> str:
    """Return line:column of the innermost key of `path` that exists in the document."""
    mark = node.start_mark
    for part in path:
        if isinstance(node, yaml.MappingNode):
            entry = next(((k, v) for k, v in node.value if k.value == part), None)
            if entry is None:
                continue
            mark, node = entry[0].start_mark, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            mark = node.start_mark
    return f"{mark.line + 1}:{mark.column + 1}"
