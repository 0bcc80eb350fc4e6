"""JSON schema of recipes, for editors that complete and check YAML while it is typed.

Generated from the records and methods: `python -m merge.recipe.schema recipes/recipe.schema.json` writes it. It checks
keys and types; limits on values (a density up to 1, one weight per model) are checked when the recipe is read.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from merge.alignment.matchers import BY
from merge.alignment.settings import AlignEntry
from merge.methods import METHODS
from merge.recipe.entries import BaseEntry, EvaluationEntry, ModelEntry, Override, Slice, SliceSource
from merge.recipe.recipe import Recipe
from merge.text.source import ModelStatistics, StatisticsEntry

RECORDS: dict[str, type[BaseModel]] = {
    record.__name__: record
    for record in (
        Recipe,
        AlignEntry,
        BaseEntry,
        EvaluationEntry,
        ModelEntry,
        ModelStatistics,
        Override,
        Slice,
        SliceSource,
        StatisticsEntry,
    )
}
GRADIENT = {"$ref": "#/$defs/Gradient"}
NUMBER = {"anyOf": [{"type": "number"}, GRADIENT]}
NUMBERS = {"type": "array", "items": NUMBER, "minItems": 1}
LAYERS = {"type": ["string", "integer"], "minLength": 1}


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a recipe, with every method's settings, defaults and descriptions."""
    schema = Recipe.model_json_schema()
    definitions: dict[str, Any] = {"Gradient": _gradient(), **schema.pop("$defs")}
    top = {"Recipe": schema, **{name: part for name, part in definitions.items() if name != "Gradient"}}
    for name, part in top.items():
        _describe(part, RECORDS[name])
    _short_forms(schema, definitions)
    definitions |= {_settings_name(name): _settings(name) for name in METHODS}
    every = {key: value for name in METHODS for key, value in _settings(name)["properties"].items()}
    for part in (definitions["Override"], definitions["Slice"]):
        part["properties"]["settings"] = {
            "type": "object",
            "propertyNames": {"enum": sorted(every)},
            "description": "Settings of the method.",
        }
        part["allOf"] = [_then(name) for name in METHODS]
        part["properties"]["method"] = _method() | {"description": "The recipe's method when left out."}
    schema["properties"]["method"] = _method() | {"default": "linear", "description": "The merge method."}
    schema["properties"]["settings"]["description"] = "Settings of the method; all have defaults."
    schema["allOf"] = [
        {"if": {"not": {"required": ["method"]}}, "then": _with_settings("linear")},
        *(_then(name) for name in METHODS),
        {"if": _is([name for name in METHODS if METHODS[name].base == "required"]), "then": {"required": ["base"]}},
    ]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "merge-models recipe"}
    return head | {key: value for key, value in schema.items() if key != "title"} | {"$defs": definitions}


def schema_text() -> str:
    """Return the schema as text, as written to the file."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"


def _gradient() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "A number that changes from the first layer to the last: equally spaced points with linear interpolation.",
        "properties": {
            "gradient": {"type": "array", "items": {"type": "number"}, "minItems": 1},
            "outside": {"type": "number", "description": "Value before the first layer and after the last."},
        },
        "required": ["gradient"],
        "additionalProperties": False,
    }


def _method() -> dict[str, Any]:
    return {"type": "string", "enum": list(METHODS)}


def _settings_name(method: str) -> str:
    return f"settings of {method}"


def _with_settings(method: str) -> dict[str, Any]:
    reference = _settings_name(method).replace(" ", "%20")
    return {"properties": {"settings": {"$ref": f"#/$defs/{reference}"}}}


def _then(method: str) -> dict[str, Any]:
    """Return the rule that a recipe with this method has settings of this method."""
    return {"if": _is([method]), "then": _with_settings(method)}


def _is(methods: list[str]) -> dict[str, Any]:
    return {"properties": {"method": {"enum": methods}}, "required": ["method"]}


def _settings(method: str) -> dict[str, Any]:
    """Return the schema of one method's settings."""
    kind = METHODS[method]
    hints, descriptions = typing.get_type_hints(kind), described(kind)
    properties = {}
    for field in dataclasses.fields(kind):
        properties[field.name] = {
            "description": descriptions[field.name],
            **_type(hints[field.name]),
            "default": list(field.default) if isinstance(field.default, tuple) else field.default,
        }
    return {
        "type": "object",
        "description": str(inspect.getdoc(kind)).splitlines()[0],
        "properties": properties,
        "additionalProperties": False,
    }


def _type(hint: Any) -> dict[str, Any]:
    """Return the schema of a setting's type; a number may be a gradient, a tuple is written as a list.

    Raises:
        TypeError: a setting has a type that a recipe cannot hold.
    """
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        parts = [_type(member) for member in typing.get_args(hint)]
        return {"anyOf": [inner for part in parts for inner in part.get("anyOf", [part])]}
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[0] is float:
        return NUMBERS
    plain = {bool: {"type": "boolean"}, int: {"type": "integer"}, str: {"type": "string"}, type(None): {"type": "null"}}
    if hint is float:
        return NUMBER
    if hint not in plain:
        raise TypeError(f"a setting of type {hint} has no schema")
    return plain[hint]


def described(kind: type) -> dict[str, str]:
    """Return attribute -> description from the Attributes section of a docstring."""
    text = str(inspect.getdoc(kind))
    section = re.search(r"^Attributes:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    descriptions: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else ():
        start = re.match(r"    ([a-z_]+(?:, [a-z_]+)*): (.*)", line)
        if start:
            names = start[1].split(", ")
            descriptions |= dict.fromkeys(names, start[2])
        else:
            descriptions |= {name: f"{descriptions[name]} {line.strip()}".strip() for name in names}
    return descriptions


def _describe(part: dict[str, Any], kind: type[BaseModel]) -> None:
    """Add a record's docstring to its schema, in place: the first line, and the description of each key."""
    part["description"] = str(inspect.getdoc(kind)).splitlines()[0]
    descriptions = described(kind)
    for name, field in part["properties"].items():
        field.pop("title", None)
        if name in descriptions:
            field["description"] = descriptions[name]


def _short_forms(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> None:
    """Allow short forms in a schema, in place: a name for a model entry, one value for a list of one."""
    properties = schema["properties"]
    name = {"type": "string", "minLength": 1}
    properties["models"] |= {"items": {"anyOf": [name, {"$ref": "#/$defs/ModelEntry"}]}, "minItems": 1}
    properties["base"]["anyOf"].insert(0, name)
    definitions["ModelEntry"]["properties"]["weight"] |= {"anyOf": [*NUMBER["anyOf"], {"type": "null"}]}
    definitions["ModelEntry"]["properties"]["statistics"]["anyOf"].insert(0, name)
    definitions["StatisticsEntry"]["properties"]["files"] = {
        "anyOf": [name, definitions["StatisticsEntry"]["properties"]["files"]]
    }
    definitions["SliceSource"]["properties"]["layers"] |= LAYERS
    definitions["Slice"]["properties"]["layers"] |= {"anyOf": [LAYERS, name, {"type": "null"}]}
    listed = properties["slices"]["anyOf"][0]
    listed["items"] = {"anyOf": [name, listed["items"]]}
    properties["slices"]["anyOf"].insert(0, name)
    definitions["Slice"]["oneOf"] = [{"required": ["layers"]}, {"required": ["sources"]}]
    tensors = definitions["Override"]["properties"]["tensors"]
    listed = {key: tensors.pop(key) for key in ("type", "items", "minItems")}
    tensors["anyOf"] = [name, listed]
    for entry, key in (
        ("AlignEntry", "text_column"),
        ("AlignEntry", "axes"),
        ("StatisticsEntry", "text_column"),
        ("ModelStatistics", "text_column"),
    ):
        definitions[entry]["properties"][key]["anyOf"].insert(0, name)
    definitions["AlignEntry"]["properties"]["by"]["enum"] = ["none", *BY]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(schema_text(), encoding="utf-8")
    else:
        sys.stdout.write(schema_text())
