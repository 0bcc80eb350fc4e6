"""Recipe: a whole merge as one record, whether typed as flags or read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from merge.alignment import ALIGNERS
from merge.errors import RecipeError, UsageError, nearest
from merge.methods import METHODS, make_method


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Record):
    """One model of the merge: a folder or Hub id, and optionally a weight and a Hub revision."""

    model: str = Field(min_length=1)
    weight: float | None = None
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
    samples: int = Field(default=512, gt=0)

    @field_validator("by")
    @classmethod
    def _known_aligner(cls, by: str) -> str:
        if by not in ("none", *ALIGNERS):
            raise ValueError(f"unknown alignment {by!r}.{nearest(by, ['none', *ALIGNERS])}")
        return by

    @model_validator(mode="after")
    def _only_with_alignment(self) -> AlignEntry:
        if self.by == "none" and (self.text or self.text_column or self.axes):
            raise ValueError("text, text_column and axes belong to an alignment. Add by: activations or by: weights.")
        return self


class Recipe(_Record):
    """What is merged, how, and to where; the first model is the reference."""

    models: tuple[ModelEntry, ...] = Field(min_length=1)
    method: str = "linear"
    settings: dict[str, Any] = Field(default_factory=dict)
    align: AlignEntry = Field(default_factory=AlignEntry)
    dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = None
    seed: int = Field(default=0, ge=0)
    output: str = Field(default="merged", min_length=1)

    @field_validator("models", mode="before")
    @classmethod
    def _plain_names(cls, models: Any) -> Any:
        return (
            [{"model": m} if isinstance(m, str) else m for m in models] if isinstance(models, list | tuple) else models
        )

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}.{nearest(method, METHODS)}")
        return method

    @model_validator(mode="after")
    def _settings_fit(self) -> Recipe:
        if len(self.models) < 2:
            raise ValueError("a merge needs at least two models, found one")
        try:
            make_method(self.method, self.settings, [m.weight for m in self.models])
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `read_recipe` reads back to an equal record; what is not set is left out."""
        record = self.model_dump(mode="json", exclude_defaults=True)
        record["models"] = [m["model"] if set(m) == {"model"} else m for m in record["models"]]
        return yaml.safe_dump(
            {"models": record.pop("models"), **record}, sort_keys=False, allow_unicode=True, width=120
        )


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
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise RecipeError(f"{place}: {error.problem}") from error
    if not isinstance(values, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of keys (models, method, ...), found {type(values).__name__}."
        )
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [f"{path}:{_place(root, e['loc'])}: {_said(e)}" for e in error.errors()]
        raise RecipeError("\n".join(lines)) from error


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return dict(super().construct_mapping(node, deep))


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


def _said(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        owners: dict[str, type[BaseModel]] = {"align": AlignEntry, "models": ModelEntry}
        owner = owners.get(str(error["loc"][0]), Recipe) if len(error["loc"]) > 1 else Recipe
        message = f"unknown key.{nearest(str(error['loc'][-1]), owner.model_fields)}"
    return f"{key}: {message}" if key else message
