"""The mergekit configuration as written: its keys, models and slices, and checks for parts without a counterpart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt

from merge.errors import nearest
from merge.recipe.mergekit.counterparts import COUNTERPARTS, Counterpart
from merge.recipe.mergekit.parameters import Fault, Where


def _as_text(value: Any) -> Any:
    """Return a reference that mergekit wrote as a mapping, {model: {path, revision}, lora}, as path@revision+lora."""
    if not isinstance(value, Mapping):
        return value
    if not ({"model"} <= set(value) <= {"model", "lora", "override_architecture"}):
        raise ValueError("expected a model: text, or the mapping that mergekit writes, {model: {path: ...}}")
    if value.get("override_architecture") is not None:
        raise ValueError("override_architecture has no counterpart here; name the class in the model's config.json")
    paths = [_path_text(value[key]) for key in ("model", "lora") if value.get(key) is not None]
    return "+".join(paths)


def _path_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("path"), str) and set(value) <= {"path", "revision"}:
        revision = value.get("revision")
        return str(value["path"]) if revision is None else f"{value['path']}@{revision}"
    raise ValueError("expected a path: text, or {path: ..., revision: ...}")


Reference = Annotated[str, BeforeValidator(_as_text), Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelItem(_Part):
    """An item of `models`."""

    model: Reference
    parameters: dict[str, Any] | None = None


class Source(_Part):
    """An item of a slice's `sources`; `layer_range` is [first, end), without the end."""

    model: Reference
    layer_range: tuple[StrictInt, StrictInt]
    parameters: dict[str, Any] | None = None


class OutputSlice(_Part):
    """An item of `slices`."""

    sources: tuple[Source, ...]
    base_model: Reference | None = None
    residual_weight: float | None = None
    merge_method: str | None = None
    parameters: dict[str, Any] | None = None


class Module(_Part):
    """An item of `modules`: the models or slices of one part of a model."""

    models: tuple[ModelItem, ...] | None = None
    slices: tuple[OutputSlice, ...] | None = None
    parameters: dict[str, Any] | None = None


class TokenizerItem(_Part):
    """The long form of `tokenizer_source`."""

    source: Reference = "union"
    tokens: Any = None
    pad_to_multiple_of: Any = None


class Document(_Part):
    """A mergekit configuration, key for key; `name` and `allow_negative_weights` have no effect in mergekit 0.1.5."""

    merge_method: str
    models: tuple[ModelItem, ...] | None = None
    slices: tuple[OutputSlice, ...] | None = None
    modules: dict[str, Module] | None = None
    base_model: Reference | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Reference | None = None
    tokenizer: TokenizerItem | None = None
    chat_template: str | None = None
    parameters: dict[str, Any] | None = None
    name: str | None = None
    allow_negative_weights: Any = None

    @property
    def inside(self) -> Where:
        """Where models and slices stand: in the file, or in its only module."""
        return () if not self.modules else ("modules", next(iter(self.modules)))

    @property
    def part(self) -> Document | Module:
        """What holds models and slices: the file, or its only module."""
        return self if not self.modules else next(iter(self.modules.values()))


@dataclass(frozen=True)
class Entry:
    """A model of a merge, or of one slice of it.

    Attributes:
        where: its position in the file.
        first, count: first layer and number of layers in a slice; all layers if count is 0.
    """

    name: str
    revision: str | None
    where: Where
    parameters: Mapping[str, Any] | None
    first: int = 0
    count: int = 0

    @property
    def layers(self) -> str:
        """The layers in the notation of recipes."""
        return str(self.first) if self.count == 1 else f"{self.first}-{self.first + self.count - 1}"


@dataclass(frozen=True)
class Merges:
    """The models of each slice and the base.

    Attributes:
        slices: the models of each slice; one slice for a list of models.
        base: name and revision of the model that task vectors start from, which is then not in a slice.
    """

    slices: tuple[tuple[Entry, ...], ...]
    base: tuple[str, str | None] | None


def check_document(document: Document) -> Counterpart:
    """Return our counterpart of the merge method.

    Raises:
        Fault: the method is unknown, or a part of the file has no counterpart.
    """
    if document.merge_method not in COUNTERPARTS:
        raise Fault(
            ("merge_method",),
            f"unknown mergekit method {document.merge_method!r}.{nearest(document.merge_method, COUNTERPARTS)}",
        )
    if document.modules is not None and set(document.modules) != {"default"}:
        raise Fault(
            ("modules",),
            f"modules {', '.join(document.modules) or 'without a name'}: parts of a model merged separately have no "
            "counterpart here. A model of one part has the module default; give models or slices",
        )
    if document.modules and (document.models or document.slices):
        raise Fault(("modules",), "give either models, slices or modules")
    part = document.part
    if bool(part.models) == bool(part.slices):
        raise Fault((*document.inside, "slices" if part.slices else "models"), "give either models or slices")
    return COUNTERPARTS[document.merge_method]


def read_reference(text: str, where: Where) -> tuple[str, str | None]:
    """Return the model and revision of mergekit's repo@revision.

    Raises:
        Fault: it names an adapter, or is not a valid reference.
    """
    if "+" in text:
        raise Fault(where, f"{text!r} names a LoRA adapter (model+lora); merge it into its model first")
    name, *revision = text.split("@")
    if len(revision) > 1 or not name or revision == [""]:
        raise Fault(where, f"{text!r} is not a model; expected a folder or a Hub id, optionally with @revision")
    return name, revision[0] if revision else None


def read_merges(document: Document, counterpart: Counterpart) -> Merges:
    """Return the models to merge in our order: a base that is also an input comes first.

    mergekit adds an unlisted base_model to the models, and leaves it out of the task vectors.

    Raises:
        Fault: a base is missing, a model is listed twice, or layers do not fit.
    """
    base = None if document.base_model is None else read_reference(document.base_model, ("base_model",))
    if base is None and counterpart.base in ("vectors", "first"):
        raise Fault(("merge_method",), f"{document.merge_method} needs a base_model")
    slices = []
    if document.part.models:
        at: Where = (*document.inside, "models")
        entries = [
            Entry(*read_reference(item.model, (*at, i, "model")), (*at, i), item.parameters)
            for i, item in enumerate(document.part.models)
        ]
        if base is not None and base not in [(entry.name, entry.revision) for entry in entries]:
            entries.append(Entry(*base, ("base_model",), None))
        slices.append(entries)
    slices += [_sources(document, index, part) for index, part in enumerate(document.part.slices or ())]
    apart = base is not None and counterpart.base in ("vectors", "optional")
    ordered = tuple(_in_order(entries, base, counterpart) for entries in slices)
    _check_revisions(ordered)
    return Merges(ordered, base if apart else None)


def _sources(document: Document, index: int, part: OutputSlice) -> list[Entry]:
    at: Where = (*document.inside, "slices", index)
    if part.merge_method not in (None, document.merge_method):
        raise Fault(
            (*at, "merge_method"),
            f"mergekit takes no method of a slice and would merge it by {document.merge_method}; delete this key, or write a "
            "recipe, whose slices have a method",
        )
    if part.residual_weight is not None:
        raise Fault(
            (*at, "residual_weight"),
            "residual_weight has no counterpart here, and no effect in mergekit",
        )
    if part.base_model not in (None, document.base_model):
        raise Fault((*at, "base_model"), "a slice with another base_model has no counterpart here")
    if not part.sources:
        raise Fault((*at, "sources"), "a slice needs sources: a list of model and layer_range")
    entries: list[Entry] = []
    for i, source in enumerate(part.sources):
        where: Where = (*at, "sources", i)
        first, end = source.layer_range
        if not 0 <= first < end:
            raise Fault((*where, "layer_range"), f"[{first}, {end}] contains no layer; the end is exclusive")
        if entries and end - first != entries[0].count:
            raise Fault(
                (*where, "layer_range"), f"{end - first} layers, but the slice's first source has {entries[0].count}"
            )
        name, revision = read_reference(source.model, (*where, "model"))
        entries.append(Entry(name, revision, where, source.parameters, first, end - first))
    return entries


def _in_order(
    entries: Sequence[Entry], base: tuple[str, str | None] | None, counterpart: Counterpart
) -> tuple[Entry, ...]:
    names = [(entry.name, entry.revision) for entry in entries]
    for i, entry in enumerate(entries):
        if names[i] in names[:i]:
            raise Fault(entry.where, f"{entry.name} is listed twice among the models of one merge")
    if base is None or (counterpart.base == "input" and base not in names):
        return tuple(entries)
    if base not in names:
        raise Fault(entries[0].where, f"base_model {base[0]} is not among the sources of this slice")
    base_entry = entries[names.index(base)]
    others = tuple(entry for entry in entries if entry is not base_entry)
    if counterpart.base in ("first", "input"):
        return (base_entry, *others)
    for entry in others:
        if (entry.first, entry.count) != (base_entry.first, base_entry.count):
            raise Fault(
                entry.where,
                "task vectors between different layers of model and base have no counterpart here",
            )
    if not others:
        raise Fault(base_entry.where, "the base_model is the only model; give another model to merge")
    return others


def _check_revisions(slices: Sequence[Sequence[Entry]]) -> None:
    revisions: dict[str, str | None] = {}
    for entry in (entry for entries in slices for entry in entries):
        if revisions.setdefault(entry.name, entry.revision) != entry.revision:
            raise Fault(entry.where, f"{entry.name} is listed with two revisions; a recipe identifies models by name")
