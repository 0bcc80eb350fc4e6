"""The library that loads a folder: transformers, or sentence-transformers by one of its classes, or PyLate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checkpoints.modules import LISTING
from merge.disk.documents import read_json, read_object
from merge.errors import CheckpointError

GENERAL = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Library:
    """How the Hub lists a folder, and how it is loaded.

    Attributes:
        name: library_name of the card.
        pipeline: pipeline_tag of the card.
        tags: of the card, beside our own.
        code: lines that load it; {name} stands for its name.
    """

    name: str
    pipeline: str
    tags: tuple[str, ...]
    code: tuple[str, ...]


def _sentence(kind: str, pipeline: str, *tags: str) -> Library:
    code = (f"from sentence_transformers import {kind}", f"model = {kind}({{name}})")
    return Library("sentence-transformers", pipeline, ("sentence-transformers", *tags), code)


LIBRARIES = {
    "SentenceTransformer": _sentence(
        "SentenceTransformer", "sentence-similarity", "sentence-similarity", "feature-extraction"
    ),
    "SparseEncoder": _sentence("SparseEncoder", "feature-extraction", "sparse-encoder", "sparse"),
    "CrossEncoder": _sentence("CrossEncoder", "text-ranking", "cross-encoder"),
    "MultiVectorEncoder": _sentence("MultiVectorEncoder", "sentence-similarity", "multi-vector"),
}
PYLATE = Library(
    "PyLate",
    "sentence-similarity",
    ("ColBERT", "PyLate", "sentence-transformers", "sentence-similarity"),
    ("from pylate import models", "model = models.ColBERT({name})"),
)


def library_of(folder: Path) -> Library | None:
    """Return the library of sentence embeddings that a folder belongs to; None where transformers alone loads it."""
    config, general = (_optional(folder / name) for name in ("config.json", GENERAL))
    modules = read_json(folder / LISTING, CheckpointError) if (folder / LISTING).is_file() else []
    kinds = [str(module.get("type")) for module in modules if isinstance(module, dict)]
    if any(kind.startswith("pylate.") for kind in kinds):
        return PYLATE
    stated = general.get("model_type")
    if stated in LIBRARIES:
        return _of_labels(LIBRARIES[str(stated)], config)
    if isinstance(config.get("sentence_transformers"), dict) or config.get("sbert_ce_default_activation_function"):
        return _of_labels(LIBRARIES["CrossEncoder"], config)
    if not kinds:
        return None
    sparse = any(kind.rsplit(".", 1)[-1].startswith(("Splade", "Sparse")) for kind in kinds)
    return LIBRARIES["SparseEncoder" if sparse else "SentenceTransformer"]


def _of_labels(library: Library, config: Mapping[str, Any]) -> Library:
    """Return the library as it stands for a model: a cross-encoder of several classes ranks nothing, it classifies."""
    labels = config.get("id2label")
    several = isinstance(labels, dict) and len(labels) > 1
    if library is LIBRARIES["CrossEncoder"] and several:
        return Library(library.name, "text-classification", library.tags, library.code)
    return library


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path, CheckpointError) if path.is_file() else {}
