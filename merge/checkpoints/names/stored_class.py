"""The class that the weights of a file are of, which may be another than config.json names.

Embedding models are often the bare encoder of a class with a head (all-mpnet-base-v2 names MPNetForMaskedLM), or name a class
of their author's code (Contriever) or none. AutoModel reads all of them as the base model, and so they are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from merge.checkpoints.names.canonical import canonical_name, canonicalise, expected_names, is_base, lacking_weights
from merge.checkpoints.structure import Structure, structure_of, transformers_build
from merge.checkpoints.weights.read import StoredTensor
from merge.disk.cache import cache_key, read_cached, write_cached
from merge.errors import CheckpointError

# Names of the heads that models were pretrained with: of words, of next sentences, of replaced words.
PRETRAINING = (
    "cls.", "lm_predictions.", "mask_predictions.", "lm_head.", "predictions.", "sop_classifier.", "generator_",
    "discriminator_predictions.", "vocab_",
)  # fmt: skip


@dataclass(frozen=True)
class NamedTensors:
    """The tensors of a file under their canonical names.

    Attributes:
        structure: of the class that they are the weights of.
        tensors: those that the class has.
        extra: those that it does not have.
        notes: for the user.
    """

    structure: Structure
    tensors: Mapping[str, StoredTensor]
    extra: Mapping[str, StoredTensor]
    notes: tuple[str, ...]


def read_names(config: Mapping[str, Any], stored: Mapping[str, StoredTensor], source: str) -> NamedTensors:
    """Return the tensors of a file by their canonical names, and the class that they are the weights of.

    Raises:
        CheckpointError: config.json names no class that transformers has, and the weights are not a base model's; two
            tensors have one name.
    """
    try:
        structure = structure_of(config, len(stored))
    except CheckpointError as error:
        named = _of_family(config, stored, source)
        if named is None:
            raise CheckpointError(f"{source}: {error}") from error
        return named
    tensors, extra, notes = canonicalise(stored, structure, source)
    if not _lacks_whole_head(structure, tensors):
        return NamedTensors(structure, tensors, extra, tuple(notes))
    base = structure_of({**config, "architectures": [structure.base_architecture]}, len(stored))
    tensors, extra, notes = canonicalise(stored, base, source)
    note = (
        f"{source}: config.json names {structure.architecture}, but the weights are those of its base model alone: read "
        f"and written as {base.architecture}"
    )
    return NamedTensors(base, tensors, extra, (*notes, note))


def _lacks_whole_head(structure: Structure, tensors: Mapping[str, StoredTensor]) -> bool:
    """Return whether these are the weights of the base model inside a class, and none of its head."""
    if is_base(structure) or not structure.writes_prefix or not structure.prefix:
        return False
    required = {canonical_name(name, structure) for name in structure.required}
    head = {name for name in expected_names(structure) if not name.startswith(f"{structure.prefix}.")}
    lacking = set(lacking_weights(structure, tensors))
    return bool(head & required) and not head & tensors.keys() and lacking == head & required


def _of_family(config: Mapping[str, Any], stored: Mapping[str, StoredTensor], source: str) -> NamedTensors | None:
    """Return the tensors as those of the family's base model; None where they are not, or a class of its own has more."""
    stated = config.get("architectures") or []
    name = _base_of_family(str(config.get("model_type")))
    if name is None or not isinstance(stated, list) or len(stated) > 1 or name in stated:
        return None
    try:
        base = structure_of({**config, "architectures": [name]}, len(stored))
        tensors, extra, notes = canonicalise(stored, base, source)
    except CheckpointError:
        return None
    # An author's class may compute something else of the same encoder, which shows in tensors of its own; a file without
    # a class may be a classifier. The heads of pretraining alone are no loss to a base model.
    task_head = any(not name.startswith(PRETRAINING) for name in extra)
    if (extra and stated) or task_head or lacking_weights(base, tensors):
        return None
    says = f"names {stated[0]}, which transformers does not have" if stated else "names no class"
    note = f"{source}: config.json {says}; its weights are read and written as {name}"
    return NamedTensors(base, tensors, extra, (*notes, note))


def _base_of_family(model_type: str) -> str | None:
    """Return the class that AutoModel takes for a model type; None where it has none, or a choice of several."""
    key = cache_key(transformers_build(), model_type)
    kept = read_cached("auto-classes", key)
    if kept is None:
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

        name = MODEL_MAPPING_NAMES.get(model_type)
        kept = name if isinstance(name, str) else ""
        write_cached("auto-classes", key, kept)
    return str(kept) or None
