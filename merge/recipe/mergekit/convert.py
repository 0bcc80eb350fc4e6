"""mergekit's YAML: read as a recipe of ours, with a warning wherever the result is not the same to rounding.

Where the two differ and we have a setting for it, it is set as mergekit does; where we have none, a warning says so in
one line; what has no counterpart is an error with its line and column. Keys that mergekit would pass over are errors,
and so is, when the merge runs, a filter that no tensor's name holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from merge.errors import RecipeError, nearest
from merge.recipe.mergekit.counterparts import EXACT, Counterpart
from merge.recipe.mergekit.document import Document, Merges, check_document, read_merges, read_reference
from merge.recipe.mergekit.parameters import Fault, Scope, Settled, Where, has_gradient, read_scope, settle, stretched
from merge.recipe.recipe import Recipe, read_recipe
from merge.recipe.validation import located_faults, plain_message
from merge.recipe.yaml_document import position_of, read_document

DTYPES = ("float32", "float16", "bfloat16", "float64")

ALWAYS = "labels are matched by name, integer tensors must agree and NaN is refused; mergekit looks at none of these"
AFTER = "after the layers (pooler, classifier) a gradient has its last value; in mergekit it has its first there"
UNION = "a union of WordPiece vocabularies stays WordPiece; mergekit adds the other models' pieces as whole words"
LACKING = (
    "a token that a model lacks gets the mean of the models that have it; in mergekit the base_model's row goes first"
)

# Keys that no recipe of ours has: a file with one of them, and without `method`, was written for mergekit.
ONLY_MERGEKIT = frozenset(Document.model_fields) - frozenset(Recipe.model_fields)


@dataclass(frozen=True)
class Conversion:
    """A mergekit file as a recipe.

    Attributes:
        values: for `Recipe.model_validate`.
        warnings: where the result is not mergekit's, one line each.
        origin: key of the values -> where in the file it comes from.
    """

    values: Mapping[str, Any]
    warnings: tuple[str, ...]
    origin: Mapping[str, Where]


def is_mergekit(values: Mapping[str, Any]) -> bool:
    """Tell whether a YAML mapping is a mergekit configuration and no recipe of ours."""
    return "merge_method" in values or ("method" not in values and not ONLY_MERGEKIT.isdisjoint(values))


def read_any(path: Path) -> tuple[Recipe, tuple[str, ...]]:
    """Read a recipe, ours or mergekit's, and return it with a warning for whatever mergekit would do otherwise.

    Raises:
        RecipeError: each fault as file:line:column: message.
    """
    values, root = read_document(path)
    if not is_mergekit(values):
        return read_recipe(path), ()
    found = convert(values, path, root)
    try:
        return Recipe.model_validate(found.values), found.warnings
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            where = found.origin.get(str(fault["loc"][0]), ()) if fault["loc"] else ("merge_method",)
            lines.append(f"{path}:{position_of(root, where)}: {plain_message(fault)}")
        raise RecipeError("\n".join(dict.fromkeys(lines))) from error


def convert(values: Mapping[str, Any], path: Path, root: Any) -> Conversion:
    """Return a mergekit configuration in the words of our recipe.

    Args:
        path: for messages.
        root: the node tree of the file, in which lines and columns are found.
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
    warnings: list[str] = [ALWAYS]
    counterpart = check_document(document)
    merges = read_merges(document, counterpart)
    settled = _settle(document, merges, counterpart, warnings)
    values = _parts(merges, settled, counterpart)
    if merges.base is not None:
        name, revision = merges.base
        values["base"] = {"model": name, "revision": revision} if revision else name
    values |= _dtypes(document, warnings)
    values |= _tokenizer(document, merges, warnings)
    if document.chat_template == "auto":
        warnings.append("chat_template auto is left out: the first model's own is kept, if it has one")
    elif document.chat_template:
        raise Fault(("chat_template",), "chat templates are not written here; delete this key")
    warnings += _differences(document, counterpart, merges, settled)
    origin: dict[str, Where] = {key: (key,) for key in ("dtype", "out_dtype", "tokenizer")}
    origin |= dict.fromkeys(("models", "slices"), ("slices",) if document.slices else ("models",))
    origin |= {"base": ("base_model",), "method": ("merge_method",)}
    origin |= dict.fromkeys(("settings", "overrides"), ("parameters",) if document.parameters else origin["models"])
    return Conversion(values, tuple(dict.fromkeys(warnings)), origin)


def _settle(document: Document, merges: Merges, counterpart: Counterpart, warnings: list[str]) -> list[Settled]:
    """Return the settings of every slice: its sources' parameters go before its own, and these before the file's."""

    def scope(parameters: Mapping[str, Any] | None, where: Where) -> Scope:
        return read_scope(parameters, (*where, "parameters"), document.merge_method, counterpart, warnings.append)

    whole = scope(document.parameters, ())
    each = {parameter.name for parameter in counterpart.parameters if parameter.each}
    settled = []
    for index, entries in enumerate(merges.slices):
        chain = [scope(document.slices[index].parameters, ("slices", index)), whole] if document.slices else [whole]
        own = [(entry.name, scope(entry.parameters, entry.where)) for entry in entries]
        for name, found in own:
            if idle := sorted(found.rules.keys() - each):
                warnings.append(f"{', '.join(idle)} of {name} is left out: mergekit reads it for the whole merge alone")
        settled.append(settle(counterpart, chain, own))
    listed = [item for part in document.slices for item in part.sources] if document.slices else document.models or ()
    for item in listed:
        if merges.base is not None and item.parameters and read_reference(item.model, ()) == merges.base:
            names = ", ".join(sorted(item.parameters))
            warnings.append(
                f"{names} of {item.model} is left out: a base_model has no task vector, in mergekit as here"
            )
    return settled


def _parts(merges: Merges, settled: Sequence[Settled], counterpart: Counterpart) -> dict[str, Any]:
    """Return models, method, settings, overrides and slices of the recipe."""
    lengths = [entries[0].count for entries in merges.slices]
    several = len(lengths) > 1
    if several and any(one.overrides != settled[0].overrides for one in settled):
        raise Fault(
            ("slices",), "filters that say one thing in one slice and another in the next have no counterpart here"
        )
    if several and any(has_gradient(list(chosen.values())) for _, chosen in settled[0].overrides):
        raise Fault(("slices",), "gradients under a filter, over several slices, have no counterpart here")
    defaults = counterpart.defaults()

    def spread(settings: Mapping[str, Any], index: int) -> dict[str, Any]:
        return {k: stretched(v, sum(lengths[:index]), lengths[index], sum(lengths)) for k, v in settings.items()}

    found = [
        {k: v for k, v in spread(one.settings, i).items() if k not in defaults or v != defaults[k]}
        for i, one in enumerate(settled)
    ]
    models = {entry.name: _model(entry.name, entry.revision) for entries in merges.slices for entry in entries}
    shared = all(settings == found[0] for settings in found) and not (several and "weights" in found[0])
    if not several:
        for entry, weight in zip(merges.slices[0], found[0].pop("weights", ()), strict=False):
            models[entry.name]["weight"] = weight
    values: dict[str, Any] = {
        "models": [model["model"] if len(model) == 1 else model for model in models.values()],
        "method": counterpart.method,
        "settings": found[0] if shared else {},
        "overrides": [{"tensors": f"*{name}*", "settings": spread(chosen, 0)} for name, chosen in settled[0].overrides],
    }
    if lengths[0]:
        values["slices"] = [
            {"sources": [{"model": entry.name, "layers": entry.layers} for entry in entries]}
            | ({} if shared else _own(counterpart, settings, len(entries), values["overrides"]))
            for entries, settings in zip(merges.slices, found, strict=True)
        ]
    return {key: value for key, value in values.items() if value}


def _own(
    counterpart: Counterpart, settings: Mapping[str, Any], models: int, overrides: Sequence[Any]
) -> dict[str, Any]:
    """Return method and settings of one slice of several; an average of one model is that model, or it times its weight."""
    if models > 1 or counterpart.method != "linear":
        return {"settings": dict(settings)}
    if overrides:
        raise Fault(("slices",), "filters over slices of which some have one source have no counterpart here")
    scale = 1.0 if settings.get("normalize", True) else settings["weights"][0]
    return {"method": "passthrough", "settings": {"scale": scale} if scale != 1.0 else {}}


def _model(name: str, revision: str | None) -> dict[str, Any]:
    return {"model": name} if revision is None else {"model": name, "revision": revision}


def _dtypes(document: Document, warnings: list[str]) -> dict[str, Any]:
    """Return dtype and out_dtype; mergekit's dtype is that of the inputs, the arithmetic and the output."""
    found = {}
    for key, text in (("dtype", document.dtype), ("out_dtype", document.out_dtype)):
        name = (text or "").removeprefix("torch.")
        if name and name not in DTYPES:
            raise Fault((key,), f"unknown dtype {text!r}.{nearest(name, DTYPES)}")
        found[key] = name
    values = {"out_dtype": found["out_dtype"] or found["dtype"]}
    if found["dtype"] in ("float32", "float64"):
        values["dtype"] = found["dtype"]
    elif found["dtype"]:
        warnings.append(f"dtype {found['dtype']}: mergekit rounds the models to it first; here the result is, once")
    elif document.merge_method not in EXACT:
        warnings.append("models in half precision are merged in float32; mergekit computes in their dtype unless told")
    return {key: value for key, value in values.items() if value}


def _tokenizer(document: Document, merges: Merges, warnings: list[str]) -> dict[str, Any]:
    if document.tokenizer_source is not None and document.tokenizer is not None:
        raise Fault(("tokenizer",), "tokenizer and tokenizer_source say the same; give one of them")
    where: Where = ("tokenizer_source",)
    source = document.tokenizer_source
    if document.tokenizer is not None:
        where, source = ("tokenizer", "source"), document.tokenizer.source
        for key in ("tokens", "pad_to_multiple_of"):
            if getattr(document.tokenizer, key) is not None:
                raise Fault(("tokenizer", key), f"tokenizer.{key} has no counterpart here; delete it")
    if source is None:
        return {}
    warnings.append(LACKING)
    if source == "union":
        warnings.append(UNION)
        return {"tokenizer": "union"}
    if source == "base" and document.base_model is None:
        raise Fault(where, "tokenizer base needs a base_model")
    chosen = read_reference(str(document.base_model) if source == "base" else source, where)
    if chosen == merges.base:
        return {"tokenizer": "base"}
    names = {entry.name: entry.revision for entries in merges.slices for entry in entries}
    if chosen[0] not in names or chosen[1] not in (None, names[chosen[0]]):
        raise Fault(where, f"tokenizer {source!r} is none of the models.{nearest(source, {*names, 'union', 'base'})}")
    return {"tokenizer": chosen[0]}


def _differences(document: Document, counterpart: Counterpart, merges: Merges, settled: Sequence[Settled]) -> list[str]:
    """Return what this merge does otherwise than mergekit, although everything in the file was understood."""
    chosen = [one.settings for one in settled] + [dict(c) for one in settled for _, c in one.overrides]
    notes = [text for text, key in counterpart.notes if not key or any(c.get(key, 1.0) != 1.0 for c in chosen)]
    if has_gradient([list(settings.values()) for settings in chosen]):
        notes.append(AFTER)
    for one in settled:
        notes += [
            f"a tensor whose name holds both {other!r} and {name!r} follows {name!r} alone; mergekit looks each "
            "parameter up for itself"
            for other, name in one.overlaps
        ]
    numbered = {name for one in settled for name, _ in one.overrides if any(map(str.isdigit, name))}
    if numbered and _moved(merges) and any(parameter.each for parameter in counterpart.parameters):
        shown = ", ".join(map(repr, sorted(numbered)))
        notes.append(
            f"filters {shown} count the layers of the result; in mergekit a model's own parameter counts its own"
        )
    first = merges.slices[0][0].name
    if document.base_model is None:
        notes.append(f"config.json and side files are those of {first}, the first model; in mergekit of one at random")
    elif merges.base is not None:
        notes.append(f"config.json and side files are those of {first}; in mergekit of the base_model")
    return notes


def _moved(merges: Merges) -> bool:
    """Tell whether a layer of the result has another number in a model that it comes from."""
    offset = 0
    for entries in merges.slices:
        if any(entry.first != offset for entry in entries):
            return True
        offset += entries[0].count
    return False
