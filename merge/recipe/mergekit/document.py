"""mergekit's configuration as it is written: its keys, its models and slices, and what of it has no counterpart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from merge.errors import nearest
from merge.recipe.mergekit.counterparts import COUNTERPARTS, Counterpart
from merge.recipe.mergekit.parameters import Fault, Where


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelItem(_Part):
    """One of `models`."""

    model: str = Field(min_length=1)
    parameters: dict[str, Any] | None = None


class Source(_Part):
    """One of a slice's `sources`: the layers from the first up to, not with, the second of `layer_range`."""

    model: str = Field(min_length=1)
    layer_range: tuple[StrictInt, StrictInt]
    parameters: dict[str, Any] | None = None


class OutputSlice(_Part):
    """One of `slices`."""

    sources: tuple[Source, ...]
    base_model: str | None = None
    residual_weight: float | None = None
    parameters: dict[str, Any] | None = None


class TokenizerItem(_Part):
    """The long form of `tokenizer_source`."""

    source: str = "union"
    tokens: Any = None
    pad_to_multiple_of: Any = None


class Document(_Part):
    """A mergekit configuration, key for key."""

    merge_method: str
    models: tuple[ModelItem, ...] | None = None
    slices: tuple[OutputSlice, ...] | None = None
    modules: Any = None
    base_model: str | None = Field(default=None, min_length=1)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    tokenizer: TokenizerItem | None = None
    chat_template: str | None = None
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class Entry:
    """One model of a merge, or of one slice of it.

    Attributes:
        where: in the file.
        first, count: its layers in a slice; all layers if count is 0.
    """

    name: str
    revision: str | None
    where: Where
    parameters: Mapping[str, Any] | None
    first: int = 0
    count: int = 0

    @property
    def layers(self) -> str:
        """The layers as a recipe writes them."""
        return str(self.first) if self.count == 1 else f"{self.first}-{self.first + self.count - 1}"


@dataclass(frozen=True)
class Merges:
    """What is merged with what.

    Attributes:
        slices: the models of each slice; one slice for a list of models.
        base: name and revision of the model that task vectors are measured from, which is then none of those.
    """

    slices: tuple[tuple[Entry, ...], ...]
    base: tuple[str, str | None] | None


def check_document(document: Document) -> Counterpart:
    """Return what the merge method is here.

    Raises:
        Fault: the method is not known, or the file asks for something that has no counterpart.
    """
    if document.merge_method not in COUNTERPARTS:
        raise Fault(
            ("merge_method",),
            f"unknown method {document.merge_method!r} of mergekit.{nearest(document.merge_method, COUNTERPARTS)}",
        )
    if document.modules is not None:
        raise Fault(
            ("modules",), "modules (parts of a model merged apart) have no counterpart here; give models or slices"
        )
    if bool(document.models) == bool(document.slices):
        raise Fault(("slices",) if document.slices else ("models",), "give either models or slices")
    return COUNTERPARTS[document.merge_method]


def read_reference(text: str, where: Where) -> tuple[str, str | None]:
    """Return the model and revision of mergekit's repo@revision.

    Raises:
        Fault: it asks for an adapter, or is no such text.
    """
    if "+" in text:
        raise Fault(where, f"{text!r} asks for a LoRA adapter (model+lora); merge it into its model first")
    name, *revision = text.split("@")
    if len(revision) > 1 or not name or revision == [""]:
        raise Fault(where, f"{text!r} is no model; expected a folder or a Hub id, with @revision if need be")
    return name, revision[0] if revision else None


def read_merges(document: Document, counterpart: Counterpart) -> Merges:
    """Return the models that are merged, in our order: a base that counts as one of them stands first.

    mergekit adds a base_model to the models where it is not listed, and leaves it out of the task vectors.

    Raises:
        Fault: a base is missing, a model stands twice, or layers do not fit.
    """
    base = None if document.base_model is None else read_reference(document.base_model, ("base_model",))
    if base is None and counterpart.base in ("vectors", "first"):
        raise Fault(("merge_method",), f"{document.merge_method} needs a base_model")
    slices = []
    if document.models:
        listed = [
            Entry(*read_reference(item.model, ("models", i, "model")), ("models", i), item.parameters)
            for i, item in enumerate(document.models)
        ]
        if base is not None and base not in [(entry.name, entry.revision) for entry in listed]:
            listed.append(Entry(*base, ("base_model",), None))
        slices.append(listed)
    slices += [_sources(document, index, part) for index, part in enumerate(document.slices or ())]
    apart = base is not None and counterpart.base in ("vectors", "optional")
    ordered = tuple(_in_order(entries, base, counterpart) for entries in slices)
    _check_revisions(ordered)
    return Merges(ordered, base if apart else None)


def _sources(document: Document, index: int, part: OutputSlice) -> list[Entry]:
    at: Where = ("slices", index)
    if part.residual_weight is not None:
        raise Fault((*at, "residual_weight"), "residual_weight has no counterpart here, nor any effect in mergekit")
    if part.base_model not in (None, document.base_model):
        raise Fault((*at, "base_model"), "a slice with a base_model of its own has no counterpart here")
    if not part.sources:
        raise Fault((*at, "sources"), "a slice needs sources: a list of model and layer_range")
    entries: list[Entry] = []
    for i, source in enumerate(part.sources):
        where: Where = (*at, "sources", i)
        first, end = source.layer_range
        if not 0 <= first < end:
            raise Fault(
                (*where, "layer_range"), f"[{first}, {end}] holds no layer; it runs up to, not with, the second"
            )
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
            raise Fault(entry.where, f"{entry.name} stands twice among the models of one merge")
    if base is None or (counterpart.base == "input" and base not in names):
        return tuple(entries)
    if base not in names:
        raise Fault(entries[0].where, f"base_model {base[0]} is not among the sources of this slice")
    own = entries[names.index(base)]
    others = tuple(entry for entry in entries if entry is not own)
    if counterpart.base in ("first", "input"):
        return (own, *others)
    for entry in others:
        if (entry.first, entry.count) != (own.first, own.count):
            raise Fault(entry.where, "task vectors between different layers of model and base have no counterpart here")
    if not others:
        raise Fault(own.where, "only the base_model is merged; give a model beside it")
    return others


def _check_revisions(slices: Sequence[Sequence[Entry]]) -> None:
    seen: dict[str, str | None] = {}
    for entry in (entry for entries in slices for entry in entries):
        if seen.setdefault(entry.name, entry.revision) != entry.revision:
            raise Fault(
                entry.where, f"{entry.name} stands in two revisions; a recipe tells models apart by their names"
            )
