"""Dtypes and tokenizer of the output, from a mergekit configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merge.disk.documents import read_object
from merge.errors import CheckpointError, nearest
from merge.recipe.mergekit.counterparts import FLOAT32_METHODS
from merge.recipe.mergekit.document import Document, Merges, read_reference
from merge.recipe.mergekit.parameters import Fault, Where

DTYPES = ("float32", "float16", "bfloat16", "float64")

WORDPIECE_UNION = (
    "a union of WordPiece vocabularies stays WordPiece; mergekit adds the other models' pieces as whole words"
)
INSTEAD = {
    "tokens": "a token that a model lacks gets the mean of the models that have it, and no other token is changed",
    "pad_to_multiple_of": "the embedding table gets no rows beyond those of the vocabulary",
}
PADDING_ROWS = "rows of the embedding table that no token names are kept; mergekit leaves them out"
MISSING_TOKENS = (
    "a token that a model lacks gets the mean of the models that have it; mergekit prefers the base_model's row"
)


def dtypes_of(document: Document, warnings: list[str]) -> dict[str, Any]:
    """Return dtype and out_dtype; mergekit's dtype applies to the inputs, the arithmetic and the output."""
    names = {}
    for key, text in (("dtype", document.dtype), ("out_dtype", document.out_dtype)):
        name = (text or "").removeprefix("torch.")
        if name and name not in DTYPES:
            raise Fault((key,), f"unknown dtype {text!r}.{nearest(name, DTYPES)}")
        names[key] = name
    values = {"out_dtype": names["out_dtype"] or names["dtype"]}
    if names["dtype"] in ("float32", "float64"):
        values["dtype"] = names["dtype"]
    elif names["dtype"]:
        warnings.append(f"dtype {names['dtype']}: only the result is rounded to it; mergekit rounds the models first")
    elif document.merge_method not in FLOAT32_METHODS:
        warnings.append("models in half precision are merged in float32; mergekit by default computes in their dtype")
    return {key: value for key, value in values.items() if value}


def tokenizer_of(document: Document, merges: Merges, warnings: list[str]) -> dict[str, Any]:
    """Return where the vocabulary comes from."""
    if document.tokenizer_source is not None and document.tokenizer is not None:
        raise Fault(("tokenizer",), "tokenizer and tokenizer_source mean the same; give only one of them")
    where: Where = ("tokenizer_source",)
    source = document.tokenizer_source
    if document.tokenizer is not None:
        where, source = ("tokenizer", "source"), document.tokenizer.source
        for key, instead in INSTEAD.items():
            if getattr(document.tokenizer, key) is not None:
                raise Fault(
                    ("tokenizer", key), f"tokenizer.{key} has no counterpart here: {instead}. Delete it to merge so"
                )
    if source is None:
        return {}
    warnings += [MISSING_TOKENS, PADDING_ROWS]
    if source == "union":
        if not _known_without_pieces({entry.name for entries in merges.slices for entry in entries}):
            warnings.append(WORDPIECE_UNION)
        return {"tokenizer": "union"}
    if source == "base" and document.base_model is None:
        raise Fault(where, "tokenizer base needs a base_model")
    chosen = read_reference(str(document.base_model) if source == "base" else source, where)
    if chosen == merges.base:
        return {"tokenizer": "base"}
    names = {entry.name: entry.revision for entries in merges.slices for entry in entries}
    if chosen[0] not in names or chosen[1] not in (None, names[chosen[0]]):
        raise Fault(
            where,
            f"tokenizer {source!r} is not one of the models.{nearest(source, {*names, 'union', 'base'})}",
        )
    return {"tokenizer": chosen[0]}


def _known_without_pieces(names: set[str]) -> bool:
    """Return whether every model is a folder whose tokenizer.json can be read and is of another kind than WordPiece."""
    kinds = []
    for path in (Path(name).expanduser() / "tokenizer.json" for name in names):
        try:
            model = read_object(path, CheckpointError).get("model") if path.is_file() else None
        except CheckpointError:  # which the merge itself says
            model = None
        kinds.append(model.get("type") if isinstance(model, dict) else None)
    return all(kind not in (None, "WordPiece") for kind in kinds)
