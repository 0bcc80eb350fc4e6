"""Recipe: a whole merge as one record, whether typed as flags or read from YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from merge.alignment.settings import AlignEntry
from merge.errors import RecipeError, UsageError, nearest
from merge.methods import METHODS, WEIGHED, make_method
from merge.recipe.entries import BaseEntry, EvaluationEntry, ModelEntry, Override, Slice, known_method
from merge.recipe.gradient import positions, value_at
from merge.recipe.validation import fault, located_faults
from merge.recipe.yaml_document import dump, read_document
from merge.text.source import Record, StatisticsEntry


class Recipe(Record):
    """What is merged, how, and to where; the first model is the reference.

    Attributes:
        base: the model the others were fine-tuned from; task vectors are measured from it.
        base_lacks: what becomes of tensors that the base does not have (a head): their average, or the reference's.
        overrides: other settings by tensor name; a later one wins.
        heads: what becomes of task heads: average of each class by name, reference, drop, or keep-all, which writes a
            folder for each model; labels must be the same when None.
        slices: output layers from top of the list to its end; all layers in their own order when None.
        tokenizer: whose vocabulary the result has: reference, base, union, or a model; all must agree when None.
        dtype: of the arithmetic; float32, or float64 where a model is, when None.
        out_dtype: what is written; the models' own when None.
    """

    # In this order: settings are checked against the method and the models.
    models: tuple[ModelEntry, ...]
    base: BaseEntry | None = None
    base_lacks: Literal["average", "reference"] | None = None
    heads: Literal["average", "reference", "drop", "keep-all"] | None = None
    method: str = "linear"
    slices: tuple[Slice, ...] | None = Field(default=None, min_length=1)
    settings: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    overrides: tuple[Override, ...] = ()
    align: AlignEntry = Field(default_factory=AlignEntry)
    statistics: StatisticsEntry = Field(default_factory=StatisticsEntry)
    tokenizer: str | None = Field(default=None, min_length=1)
    dtype: Literal["float32", "float64"] | None = None
    out_dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = None
    seed: int = Field(default=0, ge=0, strict=True)
    evaluation: tuple[EvaluationEntry, ...] = ()
    output: str = Field(default="merged", min_length=1)

    @field_validator("models", mode="before")
    @classmethod
    def _plain_names(cls, models: Any) -> Any:
        return (
            [{"model": m} if isinstance(m, str) else m for m in models] if isinstance(models, list | tuple) else models
        )

    @field_validator("base", mode="before")
    @classmethod
    def _plain_name(cls, base: Any) -> Any:
        return {"model": base} if isinstance(base, str) else base

    @field_validator("models")
    @classmethod
    def _weights_for_all(cls, models: tuple[ModelEntry, ...]) -> tuple[ModelEntry, ...]:
        if not models:
            raise ValueError("a merge needs models, found none")
        if len({entry.weight is None for entry in models}) == 2:
            raise ValueError("some models have a weight and others have none. Give every model a weight, or none.")
        return models

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        return known_method(method)

    @field_validator("settings")
    @classmethod
    def _settings_fit(cls, settings: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        data = info.data
        if {"models", "method", "base", "slices"} <= set(data) and data[
            "slices"
        ] is None:  # else said, or checked below
            _check_method(data["method"], settings, model_weights(data["models"]), data["base"] is not None)
        return settings

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        """Check overrides and slices against the models, as the settings are."""
        entries = {entry.model: entry for entry in self.models}
        for part in self.slices or ():
            for source in part.sources or ():
                if source.model not in entries:
                    raise ValueError(
                        f"slices: {source.model!r} is not one of the models.{nearest(source.model, entries)}"
                    )
            chosen = self.models if part.sources is None else [entries[source.model] for source in part.sources]
            _check_method(*merged_settings(self, part), model_weights(chosen, part), self.base is not None)
        for override in self.overrides if self.slices is None else ():
            weights = model_weights(self.models, override)
            _check_method(*merged_settings(self, override), weights, self.base is not None)
        if self.base_lacks is not None and self.base is None:
            raise ValueError("base_lacks belongs to a base. Add base: MODEL.")
        _check_heads(self)
        if self.align.both and len(self.models) + (self.base is not None) != 2:
            raise ValueError("align: both moves the reference towards one model; with several leave it where it is.")
        parts: tuple[Override | Slice, ...] = (*self.overrides, *(self.slices or ()))
        for one in parts:
            _check_weighed(self, one)
        if self.statistics.label_column is not None and self.method != "cocktail":
            raise ValueError(
                "label_column belongs to method cocktail and to align by: learned, which alone read labels. Leave it out."
            )
        used = {self.method, *(merged_settings(self, part)[0] for part in parts)}
        if self.base is not None and all(METHODS[name].base == "none" for name in used):
            raise ValueError(
                f"method {self.method} takes no base. Drop it, or choose a method of task vectors (ties, ...)."
            )
        return self

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `read_recipe` reads back to an equal record; what is not set is left out."""
        record = self.model_dump(mode="json", exclude_defaults=True)
        record["models"] = [m["model"] if set(m) == {"model"} else m for m in record["models"]]
        return dump({"models": record.pop("models"), **record})


def _check_heads(recipe: Recipe) -> None:
    """Stop where a policy for heads does not go with the rest of the recipe."""
    if recipe.heads is None:
        return
    if recipe.slices is not None:
        raise ValueError(
            f"heads: {recipe.heads} does not go with slices, whose last names the head. Leave out one of them."
        )
    if recipe.method in WEIGHED:
        raise ValueError(f"heads: {recipe.heads} does not go with {recipe.method}, which scores whole models.")
    if recipe.evaluation and recipe.heads in ("drop", "keep-all"):
        raise ValueError(
            f"heads: {recipe.heads} does not go with evaluation, which scores one model with its head. Run "
            "evaluate-models on what is written."
        )


def merged_settings(recipe: Recipe, part: Override | Slice) -> tuple[str, dict[str, Any]]:
    """Return the method and settings that hold where `part` does: its own, over the recipe's if the method is the same."""
    method = part.method or recipe.method
    return method, {**recipe.settings, **part.settings} if method == recipe.method else dict(part.settings)


def model_weights(entries: Sequence[ModelEntry], part: Override | Slice | None = None) -> list[Any]:
    """Return the weights that stand beside the models; a part that sets weights of its own replaces them."""
    replaced = part is not None and "weights" in part.settings
    return [None if replaced else entry.weight for entry in entries]


def _check_weighed(recipe: Recipe, part: Override | Slice) -> None:
    """Stop where a part would need weights found for itself: they are found once, for whole models."""
    name, settings = merged_settings(recipe, part)
    if name not in WEIGHED or settings.get("weights") is not None:
        return
    own = name != recipe.method or part.settings or (isinstance(part, Slice) and part.sources is not None)
    if own and recipe.models[0].weight is None:
        raise ValueError(
            f"method {name} finds its weights once, for whole models; this part of the recipe would need its own. Give it "
            "settings: {weights: [...]}, or another method."
        )


def _check_method(method: str, settings: dict[str, Any], weights: Sequence[Any], has_base: bool) -> None:
    """Stop unless the method can be made with these settings and weights, at every point of every gradient."""
    try:
        for position in sorted(positions([list(settings.values()), weights])):
            chosen = {key: value_at(value, position) for key, value in settings.items()}
            made = make_method(method, chosen, [value_at(weight, position) for weight in weights])
    except UsageError as error:
        raise ValueError(str(error)) from error
    if made.base == "required" and not has_base:
        raise ValueError(f"method {method} measures task vectors from a base. Add base: MODEL (--base MODEL).")
    if len(weights) == 1 and made.base != "required" and method != "passthrough":
        raise ValueError(f"method {method} needs at least two models, found one (passthrough copies one)")


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe that command-line flags describe.

    Raises:
        RecipeError: a value does not fit; all faults in one message.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError("; ".join(fault(e, Recipe) for e in error.errors())) from error


def make_align_entry(values: Mapping[str, Any]) -> AlignEntry:
    """Return the alignment settings that command-line flags describe.

    Raises:
        RecipeError: a value does not fit; all faults in one message.
    """
    try:
        return AlignEntry.model_validate(values)
    except ValidationError as error:
        raise RecipeError(
            "; ".join(fault({**e, "loc": ("align", *e["loc"])}, Recipe) for e in error.errors())
        ) from error


def read_recipe(path: Path) -> Recipe:
    """Read a YAML recipe.

    Raises:
        RecipeError: each fault as file:line:column: key: message.
    """
    values, root = read_document(path)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(located_faults(path, root, Recipe, error)) from error
