"""Convert a mergekit configuration to a recipe, with a warning wherever the result is not equal up to rounding.

Where the two tools differ and a setting covers the difference, it is set as in mergekit; otherwise a one-line warning
states the difference. Anything without a counterpart is an error with its line and column. Keys that mergekit would
ignore are errors, and so is a filter that matches no tensor name when the merge runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from merge.errors import RecipeError
from merge.recipe.mergekit.counterparts import PAST_KEYS, Counterpart
from merge.recipe.mergekit.document import Document, Merges, check_document, read_merges, read_reference
from merge.recipe.mergekit.output import dtypes_of, tokenizer_of
from merge.recipe.mergekit.parameters import Fault, Scope, Settled, Where, read_scope, settle, stretched
from merge.recipe.recipe import Recipe
from merge.recipe.validation import located_faults, plain_message
from merge.recipe.yaml_document import position_of

ALWAYS_DIFFERENT = (
    "labels are matched by name, integer tensors must be equal and NaN is an error; mergekit checks none of this"
)


@dataclass(frozen=True)
class Conversion:
    """The recipe that a mergekit file is converted to.

    Attributes:
        values: the input of `Recipe.model_validate`.
        warnings: differences from mergekit's result, one line each.
        origin: key of the values -> its position in the file.
    """

    values: Mapping[str, Any]
    warnings: tuple[str, ...]
    origin: Mapping[str, Where]


def recipe_of_mergekit(values: Mapping[str, Any], path: Path, root: Any) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe of a mergekit configuration, with a warning for every difference from mergekit.

    Args:
        path: the file, for messages.
        root: the node tree of the file, for lines and columns.
    Raises:
        RecipeError: each fault as file:line:column: message.
    """
    conversion = convert(values, path, root)
    try:
        return Recipe.model_validate(conversion.values), conversion.warnings
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            where = conversion.origin.get(str(fault["loc"][0]), ()) if fault["loc"] else ("merge_method",)
            lines.append(f"{path}:{position_of(root, where)}: {plain_message(fault)}")
        raise RecipeError("\n".join(dict.fromkeys(lines))) from error


def convert(values: Mapping[str, Any], path: Path, root: Any) -> Conversion:
    """Return the recipe of a mergekit configuration.

    Args:
        path: the file, for messages.
        root: the node tree of the file, for lines and columns.
    Raises:
        RecipeError: each fault as file:line:column: message.
    """
    try:
        document = Document.model_validate(values)
    except ValidationError as error:
        raise RecipeError(located_faults(path, root, Document, error)) from error
    try:
        return _converted(document)
    except Fault as fault:
        raise RecipeError(f"{path}:{position_of(root, fault.where)}: {fault.message}") from fault


def _converted(document: Document) -> Conversion:
    warnings: list[str] = [ALWAYS_DIFFERENT]
    counterpart = check_document(document)
    merges = read_merges(document, counterpart)
    settled = _settle(document, merges, counterpart, warnings)
    values = _parts(merges, settled, counterpart)
    if merges.base is not None:
        name, revision = merges.base
        values["base"] = {"model": name, "revision": revision} if revision else name
    values |= dtypes_of(document, warnings)
    values |= tokenizer_of(document, merges, warnings)
    if document.chat_template:
        shown = document.chat_template if len(document.chat_template) < 20 else "text"
        warnings.append(
            f"chat_template {shown} is left out: the tokenizer keeps its own template, if it has one; the weights are the same"
        )
    warnings += [
        f"{key} is left out: mergekit 0.1.5 does not read it" for key in PAST_KEYS if getattr(document, key) is not None
    ]
    warnings += _differences(document, counterpart, merges, settled)
    origin: dict[str, Where] = {key: (key,) for key in ("dtype", "out_dtype", "tokenizer")}
    inside = (*document.inside, "slices" if document.part.slices else "models")
    origin |= dict.fromkeys(("models", "slices"), inside)
    origin |= {"base": ("base_model",), "method": ("merge_method",)}
    origin |= dict.fromkeys(("settings", "overrides"), ("parameters",) if document.parameters else origin["models"])
    return Conversion(values, tuple(dict.fromkeys(warnings)), origin)


def _settle(document: Document, merges: Merges, counterpart: Counterpart, warnings: list[str]) -> list[Settled]:
    """Return the settings of every slice; parameters of sources take precedence over the slice's, these over the file's."""

    def scope(parameters: Mapping[str, Any] | None, where: Where) -> Scope:
        return read_scope(parameters, (*where, "parameters"), document.merge_method, counterpart, warnings.append)

    wholes = [scope(document.parameters, ())]
    if document.modules:
        wholes.insert(0, scope(document.part.parameters, document.inside))
    each = {parameter.name for parameter in counterpart.parameters if parameter.each}
    settled = []
    for index, entries in enumerate(merges.slices):
        slices = document.part.slices
        chain = [scope(slices[index].parameters, (*document.inside, "slices", index)), *wholes] if slices else wholes
        by_model = [(entry.name, scope(entry.parameters, entry.where)) for entry in entries]
        for name, model_scope in by_model:
            if unread := sorted(model_scope.rules.keys() - each):
                warnings.append(
                    f"{', '.join(unread)} of {name} is left out: mergekit reads it only for the whole merge"
                )
        settled.append(settle(counterpart, chain, by_model))
    parts, models = document.part.slices, document.part.models
    items = [item for part in parts for item in part.sources] if parts else models or ()
    for item in items:
        if merges.base is not None and item.parameters and read_reference(item.model, ()) == merges.base:
            names = ", ".join(sorted(item.parameters))
            warnings.append(f"{names} of {item.model} is left out: a base_model has no task vector")
    return settled


def _parts(merges: Merges, settled: Sequence[Settled], counterpart: Counterpart) -> dict[str, Any]:
    """Return models, method, settings, overrides and slices of the recipe."""
    lengths = [entries[0].count for entries in merges.slices]
    several = len(lengths) > 1
    defaults = counterpart.defaults()

    def spread(settings: Mapping[str, Any], index: int) -> dict[str, Any]:
        return {k: stretched(v, sum(lengths[:index]), lengths[index], sum(lengths)) for k, v in settings.items()}

    per_slice = [
        {k: v for k, v in spread(part.settings, i).items() if k not in defaults or v != defaults[k]}
        for i, part in enumerate(settled)
    ]
    overrides = [
        [{"tensors": f"*{name}*", "settings": spread(chosen, i)} for name, chosen in part.overrides]
        for i, part in enumerate(settled)
    ]
    models = {entry.name: _model(entry.name, entry.revision) for entries in merges.slices for entry in entries}
    alike = all(settings == per_slice[0] for settings in per_slice) and all(each == overrides[0] for each in overrides)
    shared = alike and not (several and "weights" in per_slice[0])
    if not several:
        for entry, weight in zip(merges.slices[0], per_slice[0].pop("weights", ()), strict=False):
            models[entry.name]["weight"] = weight
    values: dict[str, Any] = {
        "models": [model["model"] if len(model) == 1 else model for model in models.values()],
        "method": counterpart.method,
        "settings": per_slice[0] if shared else {},
        "overrides": overrides[0] if shared else [],
    }
    if not several and counterpart.method == "linear" and len(models) == 1:
        values |= _copied(values["models"][0], per_slice[0], overrides[0])
    if lengths[0]:
        values["slices"] = [
            {"sources": [{"model": entry.name, "layers": entry.layers} for entry in entries]}
            | ({} if shared else _slice_settings(counterpart, settings, len(entries), inner))
            for entries, settings, inner in zip(merges.slices, per_slice, overrides, strict=True)
        ]
    return {key: value for key, value in values.items() if value}


def _copied(model: Any, settings: Mapping[str, Any], overrides: Sequence[Any]) -> dict[str, Any]:
    """Return models, method and settings of a linear merge of one model: a copy, scaled where weights are not normalised."""
    if overrides:
        raise Fault(("parameters",), "filters over a single model have no counterpart here")
    weight = model["weight"] if isinstance(model, Mapping) else 1.0
    plain = {key: value for key, value in model.items() if key != "weight"} if isinstance(model, Mapping) else model
    scale = 1.0 if settings.get("normalize", True) else weight
    return {"models": [plain], "method": "passthrough", "settings": {"scale": scale} if scale != 1.0 else {}}


def _slice_settings(
    counterpart: Counterpart, settings: Mapping[str, Any], models: int, overrides: Sequence[Any]
) -> dict[str, Any]:
    """Return method, settings and overrides of one slice of several; a linear merge of one model becomes a passthrough."""
    if models > 1 or counterpart.method != "linear":
        return {"settings": dict(settings)} | ({"overrides": list(overrides)} if overrides else {})
    if not settings.get("normalize", True) and overrides:
        raise Fault(("slices",), "filters over slices with a single source have no counterpart here")
    scale = 1.0 if settings.get("normalize", True) else settings["weights"][0]
    return {"method": "passthrough", "settings": {"scale": scale} if scale != 1.0 else {}}


def _model(name: str, revision: str | None) -> dict[str, Any]:
    return {"model": name} if revision is None else {"model": name, "revision": revision}


def _differences(document: Document, counterpart: Counterpart, merges: Merges, settled: Sequence[Settled]) -> list[str]:
    """Return the differences of this merge from mergekit's, one line each."""
    chosen = [part.settings for part in settled] + [dict(c) for part in settled for _, c in part.overrides]
    notes = [text for text, key in counterpart.notes if not key or any(c.get(key, 1.0) != 1.0 for c in chosen)]
    for part in settled:
        notes += [
            f"a tensor name that contains {other!r} and {name!r} follows only {name!r}; mergekit looks up each parameter "
            "separately"
            for other, name in part.overlaps
        ]
    numbered = {name for part in settled for name, _ in part.overrides if any(map(str.isdigit, name))}
    if numbered and _moved(merges) and any(parameter.each for parameter in counterpart.parameters):
        shown = ", ".join(map(repr, sorted(numbered)))
        notes.append(
            f"filters {shown} use layer numbers of the result; in mergekit, parameters of a model use that model's numbers"
        )
    first = merges.slices[0][0].name
    if document.base_model is None:
        notes.append(
            f"config.json and side files come from {first}, the first model; in mergekit from an arbitrary model"
        )
    elif merges.base is not None:
        notes.append(f"config.json and side files come from {first}; in mergekit from the base_model")
    return notes


def _moved(merges: Merges) -> bool:
    """Return whether a layer of the result has another number in its source model."""
    offset = 0
    for entries in merges.slices:
        if any(entry.first != offset for entry in entries):
            return True
        offset += entries[0].count
    return False
