"""Task heads: class labels are matched by their names, never by their position; a base model is what a head stands on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.sentence_transformers import pipeline_files
from merge.checkpoints.structure import Structure, structure_of, transformers_build
from merge.disk.cache import read_cached, write_cached
from merge.errors import MismatchError

_GENERIC = re.compile(r"LABEL_\d+")
# What a config says of a head, and a bare base model has no use for.
LABEL_KEYS = {"id2label", "label2id", "num_labels", "problem_type"}
CROSS_ENCODER_KEYS = {"sentence_transformers", "sbert_ce_default_activation_function"}


def class_names(structure: Structure) -> tuple[str, ...] | None:
    """Return the class names in the order of the logits; None for an architecture without classes."""
    if not structure.architecture.endswith(("ForSequenceClassification", "ForTokenClassification")):
        return None
    return structure.label_names


def is_generic(names: tuple[str, ...]) -> bool:
    """Tell whether these are transformers' placeholder names, which say nothing about the classes."""
    return any(_GENERIC.fullmatch(name) for name in names)


def fold(names: tuple[str, ...]) -> list[str]:
    """Return names as they are compared: without regard to case and to spaces around them."""
    return [name.strip().casefold() for name in names]


def label_order(reference: tuple[str, ...], other: tuple[str, ...], source: str, other_source: str) -> tuple[int, ...]:
    """Return p such that class i of the reference is class p[i] of the other model.

    Names are compared without regard to case.

    Raises:
        MismatchError: the sets of names differ, or a name stands twice; lists both.
    """
    wanted, found = fold(reference), fold(other)
    for names, where in ((wanted, source), (found, other_source)):
        if len(set(names)) != len(names):
            raise MismatchError(f"{where}: a label stands twice in id2label: {', '.join(names)}.")
    if set(wanted) != set(found):
        raise MismatchError(
            f"label sets differ: {source} has {', '.join(reference)}; {other_source} has {', '.join(other)}. "
            "Classes are matched by name: set id2label in config.json of both to the same names, or say what becomes of the "
            "heads: --heads average, reference, drop or keep-all."
        )
    return tuple(found.index(name) for name in wanted)


def label_tensors(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the canonical names of the tensors that have one row per class: those that grow with one class more."""
    names = class_names(checkpoint.structure)
    if names is None:
        return frozenset()
    more = [*names, "one more"]
    labels = {"id2label": {str(i): name for i, name in enumerate(more)}, "label2id": {n: i for i, n in enumerate(more)}}
    config = {key: value for key, value in checkpoint.config.items() if key not in LABEL_KEYS}
    grown = structure_of(config | labels).shapes
    found = {name for name, shape in checkpoint.structure.shapes.items() if grown[name] != shape}
    return frozenset(checkpoint.canonical_name(name) for name in found) & checkpoint.tensors.keys()


def consistent_labels(config: Mapping[str, Any], structure: Structure) -> dict[str, Any]:
    """Return a config whose num_labels and label2id say what its id2label says; unchanged where it names no class."""
    names = class_names(structure)
    if names is None or not {"id2label", "label2id"} & config.keys():
        return dict(config)
    labels = {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
    stale = {"num_labels"} if config.get("num_labels", len(names)) != len(names) else set()
    return {key: value for key, value in config.items() if key not in stale} | labels


def base_class(checkpoint: Checkpoint) -> str:
    """Return the class of the base model inside a checkpoint's class: BertModel for BertForSequenceClassification."""
    parts = [transformers_build(), checkpoint.config]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    found = read_cached("base-classes", key)
    if not isinstance(found, str):
        from merge.checkpoints.transformers_model import meta_model

        found = type(meta_model(checkpoint.config).base_model).__name__
        write_cached("base-classes", key, found)
    return found


def encoder_of(checkpoint: Checkpoint) -> Checkpoint:
    """Return the base model inside a checkpoint as a checkpoint of its own: no head, no modules, no labels.

    Raises:
        MismatchError: the class has no base model that could be told apart from its head.
    """
    prefix = checkpoint.structure.prefix
    tensors = {name: t for name, t in checkpoint.tensors.items() if prefix and name.startswith(f"{prefix}.")}
    if not tensors:
        raise MismatchError(
            f"{checkpoint.source}: {checkpoint.architecture} holds no base model of its own, so what is its head cannot be "
            "told. Leave out --heads."
        )
    config = {k: v for k, v in checkpoint.config.items() if k not in LABEL_KEYS and k not in CROSS_ENCODER_KEYS}
    structure = structure_of(config | {"architectures": [base_class(checkpoint)]})
    writes_prefix = any(name.startswith(f"{prefix}.") for name in structure.shapes)
    pipeline = set(pipeline_files(checkpoint))
    side_files = tuple(name for name in checkpoint.side_files if name not in pipeline)
    return replace(checkpoint, structure=structure, tensors=tensors, writes_prefix=writes_prefix, side_files=side_files)
