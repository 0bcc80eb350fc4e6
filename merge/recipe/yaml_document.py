"""Strict YAML: no key twice, numbers as people write them, every fault with its line and column."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from merge.errors import RecipeError

# What PyYAML lets through from int("x") and the like, when a document says !!int x.
BAD_TAG = (ValueError, TypeError, LookupError, AttributeError)


def read_document(path: Path, what: str = "recipe", keys: str = "models, method, ...") -> tuple[dict[str, Any], Any]:
    """Return a YAML file's mapping, and its node tree, in which `position_of` finds lines and columns.

    Args:
        what, keys: what the file is, and some of its keys, for errors.
    Raises:
        RecipeError: it cannot be read, is not YAML or not a mapping; as file:line:column: message.
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
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise RecipeError(f"{where}: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        raise RecipeError(f"{path}:{line}:{column}: character {error.character!r} is not allowed in YAML") from error
    except BAD_TAG as error:
        raise RecipeError(f"{path}:1:1: a tag (!!int, !!float, ...) does not fit its value: {error}") from error
    if not isinstance(values, dict):
        found = "an empty file" if values is None else f"a {type(values).__name__}"
        raise RecipeError(f"{path}:1:1: a {what} is a mapping of keys ({keys}), found {found}.")
    return values, root


def read_value(text: str) -> Any:
    """Return the value that a recipe would read from this text: a number, true or false, text, a list.

    Raises:
        RecipeError: it is not a value.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, *BAD_TAG) as error:
        raise RecipeError(
            f"{text!r} is not a value that YAML can read. Put it in quotes if it is meant as text."
        ) from error


def dump(record: dict[str, Any]) -> str:
    """Return a record as YAML that `read_document` reads back to an equal one."""
    text: str = yaml.dump(record, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, where 1e-3 is a number (in YAML 1.1 it is text) and a date is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name and form
        letter: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return dict(super().construct_mapping(node, deep))


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what `_StrictLoader` would not read as text."""


for _resolver in (_StrictLoader, _Dumper):
    _resolver.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def position_of(node: Any, path: tuple[int | str, ...]) -> str:
    """Return line:column of the innermost key of `path` that the document holds."""
    mark = node.start_mark
    for part in path:
        if isinstance(node, yaml.MappingNode):
            hit = next(((k, v) for k, v in node.value if k.value == part), None)
            if hit is None:
                continue
            mark, node = hit[0].start_mark, hit[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            mark = node.start_mark
    return f"{mark.line + 1}:{mark.column + 1}"
