"""Strict YAML: duplicate keys are errors, 1e-3 is a number, every error has its line and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from merge.disk.documents import read_text
from merge.disk.yaml_text import Dumper, YamlFault, parse_yaml
from merge.errors import RecipeError

# PyYAML's words for a second document.
SECOND_DOCUMENT = "but found another document"


def read_document(path: Path, what: str = "recipe", keys: str = "models, method, ...") -> tuple[dict[str, Any], Any]:
    """Return a YAML file's mapping, and its node tree, in which `position_of` finds lines and columns.

    Args:
        what, keys: the kind of file and some of its keys, for error messages.
    Raises:
        RecipeError: the file cannot be read, is not YAML or not a mapping; as file:line:column: message.
    """
    text = read_text(path, RecipeError, f"{what} {path}").replace("\r\n", "\n")
    try:
        values, root = parse_yaml(text)
    except YamlFault as fault:
        position = str(path) if fault.line is None else f"{path}:{fault.line}:{fault.column}"
        if str(fault) == SECOND_DOCUMENT:
            raise RecipeError(
                f"{position}: a second document begins here; a file holds one {what}. Put each into a file of its own (the "
                "parts of a mergekit-multi file too) and run them in their order."
            ) from fault
        raise RecipeError(f"{position}: {fault}") from fault
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
        return parse_yaml(text)[0]
    except YamlFault as error:
        raise RecipeError(f"{text!r} is not valid YAML. Put it in quotes if it is meant as text.") from error


def dump(record: dict[str, Any]) -> str:
    """Return a record as YAML that `read_document` reads back as an equal record."""
    text: str = yaml.dump(record, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


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
