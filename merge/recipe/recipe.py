"""The recipe: the record of a whole merge, from command-line flags or YAML."""

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
from merge.recipe.slice_text import expanded
from merge.recipe.validation import fault, located_faults
from merge.recipe.yaml_document import dump, read_document
from merge.text.source import Record, StatisticsEntry


class Recipe(Record):
    """The models to merge, the method, the alignment and the output; the first model is the reference.

    Attributes:
        base: the model that the others were fine-tuned from; task vectors start from it.
        base_lacks: for tensors that the base does not have (such as a head): average them, or copy the reference's.
        overrides: settings by tensor name; a later override wins.
        extra_tensors: rule for tensors of a file that its class does not have: keep or drop; when None those that all models
            have are merged, unless models are aligned or measured.
        heads: rule for task heads: average (each class by name), reference, drop, or keep-all, which writes one folder
            per model; labels must be equal when None.
        config: rule for settings that decide outputs and differ (activations, pooling, prompts): reference keeps those of
            the first model; all models must agree when None.
        slices: the layers of the output in order; all layers of the models when None. Also as the text of a plan with models
            A, B, ...: "A[0-3], merge(A[4-7], B[4-7])".
        tokenizer: source of the vocabulary: reference, base, union, or a model; all models must agree when None.
        dtype: dtype of the arithmetic; when None float32, or float64 if a model is in float64.
        out_dtype: dtype of the written weights; that of the models when None.
    """

    # The order matters: settings are checked against the method and the models above them.
    models: tuple[ModelEntry, ...]
    base: BaseEntry | None = None
    base_lacks: Literal["average", "reference"] | None = None
    extra_tensors: Literal["keep", "drop"] | None = None
    heads: Literal["average", "reference", "drop", "keep-all"] | None = None
    config: Literal["reference"] | None = None
    method: str = "linear"
    slices: tuple[Slice, ...] | None = Field(default=None, min_length=1)
    settings: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    overrides: tuple[Override, ...] = ()
    # Constructed without a check: checked, each would need a validator of its own, which takes a while to build.
    align: AlignEntry = Field(default_factory=AlignEntry.model_construct)
    statistics: StatisticsEntry = Field(default_factory=StatisticsEntry.model_construct)
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

    @field_validator("slices", mode="before")
    @classmethod
    def _plan_text(cls, slices: Any, info: ValidationInfo) -> Any:
        models = info.data.get("models")  # absent where they are at fault, which is said elsewhere
        return expanded(slices, [entry.model for entry in models]) if models else None

    @field_validator("settings")
    @classmethod
    def _settings_fit(cls, settings: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        data = info.data
        if {"models", "method", "base", "slices"} <= set(data) and data[
            "slices"
        ] is None:  # otherwise an error exists already, or _parts_fit checks
            _check_method(data["method"], settings, model_weights(data["models"]), data["base"] is not None)
        return settings

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        """Check overrides, slices, heads, alignment and base against the models and methods."""
        entries = {entry.model: entry for entry in self.models}
        for part in self.slices or ():
            for source in part.sources or ():
                if source.model not in entries:
                    raise ValueError(
                        f"slices: {source.model!r} is not one of the models.{nearest(source.model, entries)}"
                    )
            chosen = self.models if part.sources is None else [entries[source.model] for source in part.sources]
            _check_method(*merged_settings(self, part), model_weights(chosen, part), self.base is not None)
            for override in part.overrides:
                within = self.model_copy(
                    update=dict(zip(("method", "settings"), merged_settings(self, part), strict=True))
                )
                weights = model_weights(chosen, part if "weights" in part.settings else override)
                _check_method(*merged_settings(within, override), weights, self.base is not None)
        for override in self.overrides if self.slices is None else ():
            weights = model_weights(self.models, override)
            _check_method(*merged_settings(self, override), weights, self.base is not None)
        if self.base_lacks is not None and self.base is None:
            raise ValueError("base_lacks has no effect without a base. Add base: MODEL (--base MODEL).")
        _check_heads(self)
        if self.align.both and len(self.models) + (self.base is not None) != 2:
            raise ValueError(
                "align: both moves the reference towards one other model; with several models leave it out."
            )
        inner = [override for part in self.slices or () for override in part.overrides]
        parts: tuple[Override | Slice, ...] = (*self.overrides, *(self.slices or ()), *inner)
        for changed in parts:
            _check_weighed(self, changed)
        if self.statistics.label_column is not None and self.method != "cocktail":
            raise ValueError("only method cocktail and align by: learned read label_column. Leave it out.")
        used = {self.method, *(merged_settings(self, part)[0] for part in parts)}
        _check_statistics(self, used)
        if self.base is not None and all(METHODS[name].base == "none" for name in used):
            raise ValueError(
                f"method {self.method} uses no base. Leave base out, or choose a method of task vectors (ties, ...)."
            )
        return self

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `read_recipe` reads back as an equal record; defaults are left out."""
        record = self.model_dump(mode="json", exclude_defaults=True)
        record["models"] = [m["model"] if set(m) == {"model"} else m for m in record["models"]]
        return dump({"models": record.pop("models"), **record})


def _check_heads(recipe: Recipe) -> None:
    """Stop where the rule for heads contradicts the rest of the recipe."""
    if recipe.heads is None:
        return
    if recipe.slices is not None:
        raise ValueError(
            f"heads: {recipe.heads} cannot be combined with slices: the last slice determines the head. Leave one of them out."
        )
    if recipe.method in WEIGHED:
        raise ValueError(f"heads: {recipe.heads} cannot be combined with {recipe.method}, which scores whole models.")
    if recipe.evaluation and recipe.heads in ("drop", "keep-all"):
        raise ValueError(
            f"heads: {recipe.heads} cannot be combined with evaluation, which scores one model with its head. Run "
            "evaluate-models on the output instead."
        )


def _check_statistics(recipe: Recipe, methods: set[str]) -> None:
    """Stop where models would be measured on a text that nobody chose, or statistics would be read by no method."""
    readers = sorted(name for name in methods if METHODS[name].statistics is not None)
    lacking = [entry.model for entry in recipe.models if entry.statistics is None]
    given = recipe.statistics.files or len(lacking) < len(recipe.models)
    if given and not readers:
        raise ValueError(f"statistics of models are read by fisher and regmean alone, not by {recipe.method}.")
    if recipe.statistics.text is not None and not readers and "cocktail" not in methods:
        raise ValueError(
            f"the text of statistics is read by fisher, regmean and cocktail alone, not by {recipe.method}. Leave it out; text "
            "for an alignment is align: {text: ...} (--text)."
        )
    if readers and lacking and recipe.statistics.text is None and not recipe.statistics.files:
        raise ValueError(
            f"{readers[0]} weighs every model by what it does on text of its own task, and {' and '.join(lacking)} "
            f"{'has' if len(lacking) == 1 else 'have'} none. Give each model its text or statistics file (statistics: beside "
            f"the model, --statistics {lacking[0]}=FILE), or one text for all (statistics: {{text: FILE}}, --statistics-text "
            "FILE; built-in is the package's own)."
        )


def merged_settings(recipe: Recipe, part: Override | Slice) -> tuple[str, dict[str, Any]]:
    """Return method and settings of a part; the recipe's settings apply beneath its settings if the method is the same."""
    method = part.method or recipe.method
    return method, {**recipe.settings, **part.settings} if method == recipe.method else dict(part.settings)


def model_weights(entries: Sequence[ModelEntry], part: Override | Slice | None = None) -> list[Any]:
    """Return the weight of each model entry; all None if the part sets `weights`."""
    replaced = part is not None and "weights" in part.settings
    return [None if replaced else entry.weight for entry in entries]


def _check_weighed(recipe: Recipe, part: Override | Slice) -> None:
    """Stop where a part would need weights of its own from a search: searches run once, for whole models."""
    name, settings = merged_settings(recipe, part)
    if name not in WEIGHED or settings.get("weights") is not None:
        return
    needs_search = name != recipe.method or part.settings or (isinstance(part, Slice) and part.sources is not None)
    if needs_search and recipe.models[0].weight is None:
        raise ValueError(
            f"method {name} computes weights once, for whole models, and not for a part of the recipe. Give this part "
            "settings: {weights: [...]}, or another method."
        )


def _check_method(method: str, settings: dict[str, Any], weights: Sequence[Any], has_base: bool) -> None:
    """Stop unless the method accepts these settings and weights, at every point of every gradient."""
    try:
        for position in sorted(positions([list(settings.values()), weights])):
            chosen = {key: value_at(value, position) for key, value in settings.items()}
            instance = make_method(method, chosen, [value_at(weight, position) for weight in weights])
    except UsageError as error:
        raise ValueError(str(error)) from error
    if instance.base == "required" and not has_base:
        raise ValueError(f"method {method} merges task vectors and needs a base. Add base: MODEL (--base MODEL).")
    if len(weights) == 1 and instance.base != "required" and method != "passthrough":
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
    return validated(values, path, root)


def validated(values: Mapping[str, Any], path: Path, root: Any) -> Recipe:
    """Return the recipe of a YAML document.

    Args:
        path: the file, for messages.
        root: the node tree of the file, as `read_document` returns it.
    Raises:
        RecipeError: each fault as file:line:column: key: message.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(located_faults(path, root, Recipe, error)) from error
