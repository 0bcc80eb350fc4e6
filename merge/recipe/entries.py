"""The parts of a recipe: models, overrides, slices, alignment, statistics, evaluations."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from merge.errors import UsageError, nearest
from merge.methods import METHODS
from merge.recipe.gradient import is_gradient
from merge.text.source import Record, listed

# A number, or one that changes from the first layer to the last.
Weight = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number"},
                {"type": "object", "properties": {"gradient": {"type": "array", "items": {"type": "number"}}}},
                {"type": "null"},
            ]
        }
    ),
]


class ModelEntry(Record):
    """One model of the merge: a folder or Hub id, and optionally a weight and a Hub revision."""

    model: str = Field(min_length=1)
    weight: Weight = None
    revision: str | None = None

    @field_validator("weight")
    @classmethod
    def _number_or_gradient(cls, weight: Any) -> Any:
        try:
            fits = weight is None or is_gradient(weight) or (isinstance(weight, int | float) and weight is not True)
        except UsageError as error:
            raise ValueError(str(error)) from error
        if not fits or weight is False:
            raise ValueError("expected a number")
        return float(weight) if isinstance(weight, int) else weight


class BaseEntry(Record):
    """The model that the others were fine-tuned from: a folder or Hub id, and optionally a Hub revision."""

    model: str = Field(min_length=1)
    revision: str | None = None


class Override(Record):
    """Other settings, or another method, for the tensors whose names match.

    Attributes:
        tensors: patterns with * and ?, over the names that transformers writes.
        method: the recipe's own when None; then the recipe's settings hold on where these say nothing.
    """

    tensors: tuple[str, ...] = Field(min_length=1)
    method: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("tensors", mode="before")
    @classmethod
    def _one_pattern(cls, patterns: Any) -> Any:
        return listed(patterns)

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str | None) -> str | None:
        return method if method is None else known_method(method)


class SliceSource(Record):
    """Layers of one model: "0-5" (both ends included), "3", or a list of such."""

    model: str = Field(min_length=1)
    layers: str = Field(min_length=1)

    @field_validator("layers", mode="before")
    @classmethod
    def _as_text(cls, layers: Any) -> Any:
        return str(layers) if isinstance(layers, int) and not isinstance(layers, bool) else layers


class Slice(Record):
    """A run of output layers: the same layers of every model, or layers of the models named.

    Attributes:
        layers: of every model; or
        sources: what each model gives; all of one length.
        method, settings: for these layers; the recipe's own when None.
    """

    layers: str | None = None
    sources: tuple[SliceSource, ...] | None = Field(default=None, min_length=1)
    method: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("layers", mode="before")
    @classmethod
    def _as_text(cls, layers: Any) -> Any:
        return str(layers) if isinstance(layers, int) and not isinstance(layers, bool) else layers

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str | None) -> str | None:
        return method if method is None else known_method(method)

    @model_validator(mode="after")
    def _one_way(self) -> Slice:
        if (self.layers is None) == (self.sources is None):
            raise ValueError("a slice has either layers (of every model) or sources (a list of model and layers)")
        return self


class EvaluationEntry(Record):
    """An evaluation of the merged model by evaluate-models, whose scores go into its card.

    Attributes:
        task: a task that evaluate-models lists, or a task file (.yaml).
        data: a local file or folder instead of the Hub.
        limit: rows read.
        labels: class names in the order of the logits, for models that do not name them.
    """

    task: str = Field(min_length=1)
    data: str | None = None
    limit: int | None = Field(default=None, gt=0, strict=True)
    labels: tuple[str, ...] | None = Field(default=None, min_length=1)


def known_method(method: str) -> str:
    """Return the name of a method if there is one of that name; the error names the nearest."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}.{nearest(method, METHODS)}")
    return method
