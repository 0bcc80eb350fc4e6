"""The parts of a recipe: models, overrides, slices, alignment, statistics, evaluations."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from merge.errors import UsageError, brief
from merge.methods import METHODS, method_advice
from merge.methods.checks import is_finite_number
from merge.recipe.gradient import is_gradient
from merge.text.source import ModelStatistics, Record, as_list, model_statistics

# A number, or a gradient from the first layer to the last.
Weight = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number"},
                {
                    "type": "object",
                    "properties": {
                        "gradient": {"type": "array", "items": {"type": "number"}},
                        "outside": {"type": "number"},
                    },
                },
                {"type": "null"},
            ]
        }
    ),
]


class ModelEntry(Record):
    """A model to merge: a folder or Hub id, and optionally a weight, a Hub revision and its statistics.

    Attributes:
        statistics: for fisher and regmean: a text of the model's own task, or a file of merge-models statistics.
    """

    model: str = Field(min_length=1)
    weight: Weight = None
    revision: str | None = None
    statistics: ModelStatistics | None = None

    @field_validator("statistics", mode="before")
    @classmethod
    def _plain_name(cls, statistics: Any) -> Any:
        return model_statistics(statistics)

    @field_validator("weight")
    @classmethod
    def _number_or_gradient(cls, weight: Any) -> Any:
        try:
            fits = weight is None or is_gradient(weight) or (isinstance(weight, int | float) and weight is not True)
        except UsageError as error:
            raise ValueError(str(error)) from error
        if not fits or weight is False:
            raise ValueError("expected a number")
        if isinstance(weight, int) and not is_finite_number(weight):
            raise ValueError(f"expected a finite number, found {brief(str(weight))}")
        return float(weight) if isinstance(weight, int) else weight


class BaseEntry(Record):
    """The model that the others were fine-tuned from: a folder or Hub id, and optionally a Hub revision."""

    model: str = Field(min_length=1)
    revision: str | None = None


class Override(Record):
    """Settings, and optionally a method, for the tensors whose names match a pattern.

    Attributes:
        tensors: patterns with * and ? for tensor names as transformers writes them.
        method: the recipe's when None; the recipe's settings then apply too, unless set here.
    """

    tensors: tuple[str, ...] = Field(min_length=1)
    method: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("tensors", mode="before")
    @classmethod
    def _as_list(cls, patterns: Any) -> Any:
        return as_list(patterns)

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str | None) -> str | None:
        return method if method is None else known_method(method)


class SliceSource(Record):
    """Layers of one model: "0-5" (both ends included), "3", or several separated by commas."""

    model: str = Field(min_length=1)
    layers: str = Field(min_length=1)

    @field_validator("layers", mode="before")
    @classmethod
    def _as_text(cls, layers: Any) -> Any:
        return str(layers) if isinstance(layers, int) and not isinstance(layers, bool) else layers


class Slice(Record):
    """Consecutive layers of the output: the same layers of every model, or layers of the models listed.

    Attributes:
        layers: the layers to merge, the same of every model; or the text of a plan, whose merge(...) has this method.
        sources: instead of layers: models and their layers, equally many each.
        method, settings: for these layers; the recipe's when None.
        overrides: settings by tensor name for these layers; a later one wins, and the recipe's own win over them.
    """

    layers: str | None = None
    sources: tuple[SliceSource, ...] | None = Field(default=None, min_length=1)
    method: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    overrides: tuple[Override, ...] = ()

    @field_validator("layers", mode="before")
    @classmethod
    def _as_text(cls, layers: Any) -> Any:
        return str(layers) if isinstance(layers, int) and not isinstance(layers, bool) else layers

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str | None) -> str | None:
        return method if method is None else known_method(method)

    @model_validator(mode="after")
    def _layers_or_sources(self) -> Slice:
        if (self.layers is None) == (self.sources is None):
            raise ValueError("a slice needs either layers (of every model) or sources (a list of model and layers)")
        return self


class EvaluationEntry(Record):
    """An evaluation of the merged model by evaluate-models; the scores are written into the model card.

    Attributes:
        task: a task listed by evaluate-models tasks, or a task file (.yaml).
        data: a local file or folder; downloaded from the Hub when None.
        limit: number of rows to read; all when None.
        labels: class names in the order of the logits, for models whose config does not name them.
    """

    task: str = Field(min_length=1)
    data: str | None = None
    limit: int | None = Field(default=None, gt=0, strict=True)
    labels: tuple[str, ...] | None = Field(default=None, min_length=1)


def known_method(method: str) -> str:
    """Return the name of a method; for an unknown method, the error suggests the nearest name."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}.{method_advice(method)}")
    return method
