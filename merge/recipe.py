"""Recipe: a whole merge as one record, whether typed as flags or read from YAML."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from merge.alignment import ALIGNERS
from merge.errors import RecipeError, UsageError, nearest
from merge.methods import METHODS, make_method


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Record):
    """One model of the merge: a folder or Hub id, and optionally a weight and a Hub revision."""

    model: str = Field(min_length=1)
    weight: float | None = Field(default=None, strict=True)
    revision: str | None = None


class AlignEntry(_Record):
    """How models are aligned to the first one before they are merged.

    Attributes:
        by: activations, weights or none.
        text: calibration text, a file or Hub dataset id; the package's own text when None.
        text_column: one column (text) or two (a pair).
        axes: kinds of axes that move; chosen without labels when None.
        samples: texts drawn at random from the whole file.
    """

    by: str = "none"
    text: str | None = None
    text_column: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=2)
    axes: tuple[str, ...] | None = Field(default=None, min_length=1)
    samples: int = Field(default=512, gt=0, strict=True)

    @field_validator("text_column", "axes", mode="before")
    @classmethod
    def _one_name(cls, names: Any) -> Any:
        return [names] if isinstance(names, str) else names

    @field_validator("by")
    @classmethod
    def _known_aligner(cls, by: str) -> str:
        if by not in ("none", *ALIGNERS):
            raise ValueError(f"unknown alignment {by!r}.{nearest(by, ['none', *ALIGNERS])}")
        return by

    @model_validator(mode="after")
    def _only_with_alignment(self) -> AlignEntry:
        given = sorted(name for name in self.model_fields_set - {"by"} if getattr(self, name) is not None)
        if self.by == "none" and given:
            verb = "belongs" if len(given) == 1 else "belong"
            raise ValueError(f"{', '.join(given)} {verb} to an alignment. Add by: activations or by: weights.")
        return self


class Recipe(_Record):
    """What is merged, how, and to where; the first model is the reference."""

    # In this order: settings are checked against the method and the models.
    models: tuple[ModelEntry, ...]
    method: str = "linear"
    settings: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    align: AlignEntry = Field(default_factory=AlignEntry)
    dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = None
    seed: int = Field(default=0, ge=0, strict=True)
    output: str = Field(default="merged", min_length=1)

    @field_validator("models", mode="before")
    @classmethod
    def _plain_names(cls, models: Any) -> Any:
        return (
            [{"model": m} if isinstance(m, str) else m for m in models] if isinstance(models, list | tuple) else models
        )

    @field_validator("models")
    @classmethod
    def _enough(cls, models: tuple[ModelEntry, ...]) -> tuple[ModelEntry, ...]:
        if len(models) < 2:
            raise ValueError(f"a merge needs at least two models, found {['none', 'one'][len(models)]}")
        if len({entry.weight is None for entry in models}) == 2:
            raise ValueError("some models have a weight and others have none. Give every model a weight, or none.")
        return models

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}.{nearest(method, METHODS)}")
        return method

    @field_validator("settings")
    @classmethod
    def _settings_fit(cls, settings: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        if {"models", "method"} <= set(info.data):  # else they are at fault themselves, and said so
            try:
                make_method(info.data["method"], settings, [m.weight for m in info.data["models"]])
            except UsageError as error:
                raise ValueError(str(error)) from error
        return settings

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `read_recipe` reads back to an equal record; what is not set is left out."""
        record = self.model_dump(mode="json", exclude_defaults=True)
        record["models"] = [m["model"] if set(m) == {"model"} else m for m in record["models"]]
        text: str = yaml.dump(
            {"models": record.pop("models"), **record}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120
        )
        return text


# What PyYAML lets through from int("x") and the like, when a document says !!int x.
BAD_TAG = (ValueError, TypeError, LookupError, AttributeError)


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe that command-line flags spell.

    Raises:
        RecipeError: a value does not fit; all faults in one message.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError("; ".join(_said(e) for e in error.errors())) from error


def read_recipe(path: Path) -> Recipe:
    """Read a YAML recipe.

    Raises:
        RecipeError: each fault as file:line:column: key: message.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from error
    try:
        root = yaml.compose(text, Loader=_StrictLoader)
        values = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise RecipeError(f"{place}: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        raise RecipeError(f"{path}:{line}:{column}: character {error.character!r} is not allowed in YAML") from error
    except BAD_TAG as error:
        raise RecipeError(f"{path}:1:1: a tag (!!int, !!float, ...) does not fit its value: {error}") from error
    if not isinstance(values, dict):
        found = "an empty file" if values is None else f"a {type(values).__name__}"
        raise RecipeError(f"{path}:1:1: a recipe is a mapping of keys (models, method, ...), found {found}.")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [f"{path}:{_place(root, e['loc'])}: {_said(e)}" for e in error.errors()]
        raise RecipeError("\n".join(lines)) from error


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


def _place(node: Any, path: tuple[int | str, ...]) -> str:
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


# What pydantic says in the words of Python, in the words of YAML.
TYPES = {
    "tuple_type": "expected a list",
    "model_type": "expected keys and values",
    "dict_type": "expected keys and values",
    "string_type": "expected text; put it in quotes if it is meant as text",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "invalid_key": "a key must be text",
    "missing": "is required",
}


def _said(error: Any) -> str:
    # What is wrong with settings is said by the method, which names itself.
    key = ".".join(str(part) for part in error["loc"] if error["loc"] != ("settings",) or error["type"] in TYPES)
    message = TYPES.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        owners: dict[str, type[BaseModel]] = {"align": AlignEntry, "models": ModelEntry}
        owner = owners.get(str(error["loc"][0]), Recipe) if len(error["loc"]) > 1 else Recipe
        message = f"unknown key.{nearest(str(error['loc'][-1]), owner.model_fields)}"
    return f"{key}: {message}" if key else message
