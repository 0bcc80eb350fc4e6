"""The parts of a recipe: models, overrides, slices, alignment, statistics, evaluations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from merge.alignment import BY, FIND_MAPS, READERS
from merge.errors import UsageError, nearest
from merge.methods import METHODS
from merge.recipe.gradient import is_gradient


class Record(BaseModel):
    """A part of a recipe: its keys are its fields, unknown ones are errors, and it cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class StatisticsEntry(Record):
    """The text that a data pass of fisher, regmean or cocktail reads.

    Attributes:
        text: a file or Hub dataset id; the package's own text when None.
        text_column: one column (text) or two (a pair).
        label_column: the column of class names; cocktail's.
        samples: texts drawn at random from the whole file.
    """

    text: str | None = None
    text_column: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=2)
    label_column: str | None = Field(default=None, min_length=1)
    samples: int = Field(default=512, gt=0, strict=True)

    @field_validator("text_column", mode="before")
    @classmethod
    def _one_name(cls, names: Any) -> Any:
        return listed(names)


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


def listed(names: Any) -> Any:
    """Return one name as a list of it, anything else as it is."""
    return [names] if isinstance(names, str) else names


def known_method(method: str) -> str:
    """Return the name of a method if there is one of that name; the error names the nearest."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}.{nearest(method, METHODS)}")
    return method


class AlignEntry(Record):
    """How models are aligned to the reference before they are merged.

    Attributes:
        by: auto, a matcher (weights, activations, ...) or none.
        text: calibration text, a file or Hub dataset id; the package's own text when None.
        text_column: one column (text) or two (a pair).
        label_column: the column of class names, for `learned`; without it masked words are predicted.
        axes: kinds of axes that move; chosen without labels when None.
        samples: texts drawn at random from the whole file.
        residual: what becomes of the stream between the layers: permutation, rotation (pre-LN models; the gains of their
            norms are folded into what reads them) or identity.
        basis: what moves inside heads: permutation, or orthogonal for rotations.
        canonical: undo or keep the canonical weights that are matched.
        restarts: further runs of weight matching, each from the best so far, disturbed; of rotations the text says which is
            best, else the weights do.
        steps: of `learned` and `annealing`.
        both: let `learned` move the reference too.
        reference: the model that the others are aligned to; the first when None.
        apply: instead of matching, the transform.safetensors of an earlier run; one for each model that moves, in their
            order, the base's last.
        repair: set each unit's mean and spread in the merge to those of the models'.
    """

    by: str = "none"
    text: str | None = None
    text_column: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=2)
    label_column: str | None = Field(default=None, min_length=1)
    axes: tuple[str, ...] | None = Field(default=None, min_length=1)
    samples: int = Field(default=512, gt=0, strict=True)
    residual: Literal["permutation", "rotation", "identity"] | None = None
    basis: Literal["permutation", "orthogonal"] | None = None
    canonical: Literal["undo", "keep"] = "undo"
    restarts: int = Field(default=0, ge=0, strict=True)
    steps: int = Field(default=200, gt=0, strict=True)
    both: bool = False
    reference: str | None = Field(default=None, min_length=1)
    apply: tuple[str, ...] | None = Field(default=None, min_length=1)
    repair: bool = False

    @field_validator("text_column", "axes", "apply", mode="before")
    @classmethod
    def _one_name(cls, names: Any) -> Any:
        return listed(names)

    @field_validator("by")
    @classmethod
    def _known_aligner(cls, by: str) -> str:
        if by not in ("none", *BY):
            raise ValueError(f"unknown alignment {by!r}.{nearest(by, ['none', *BY])}")
        return by

    @property
    def moves(self) -> bool:
        """Whether anything is aligned at all."""
        return self.by != "none" or self.apply is not None

    @model_validator(mode="after")
    def _only_with_alignment(self) -> AlignEntry:
        given = sorted(name for name in self.model_fields_set - {"by"} if getattr(self, name) not in (None, False))
        verb = "belongs" if len(given) == 1 else "belong"
        if self.apply is not None:
            if self.by != "none" or set(given) - {"apply", "reference", "repair", "text", "text_column", "samples"}:
                raise ValueError("apply repeats an alignment as it was found. Leave out by, and what belongs to it.")
        elif self.by == "none" and given:
            raise ValueError(f"{', '.join(given)} {verb} to an alignment. Add by: activations or by: weights.")
        if self.label_column is not None and self.by != "learned":
            raise ValueError("label_column belongs to by: learned; other alignments read no labels. Leave it out.")
        if self.by == "learned" and self.basis == "permutation":
            raise ValueError(
                "by learned finds maps inside heads, not permutations alone. Leave out basis: permutation."
            )
        if (self.basis == "orthogonal" or self.residual == "rotation") and self.by not in FIND_MAPS | {"auto"}:
            raise ValueError(
                f"by {self.by} finds permutations alone, no bases inside heads (basis: orthogonal) and no rotation of the "
                f"residual stream (residual: rotation). Those that do: auto, {', '.join(sorted(FIND_MAPS))}."
            )
        for name, readers in READERS.items():
            if name in given and self.by not in readers:
                raise ValueError(f"{name} says nothing to by: {self.by}. Leave it out, or use {', '.join(readers)}.")
        if self.axes is not None and self.residual is not None:
            raise ValueError("axes names the kinds that move, residual among them or not. Leave out one of the two.")
        return self
