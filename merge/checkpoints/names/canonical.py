"""Canonical names: those that transformers writes today, always with the base model's prefix."""

from __future__ import annotations

from collections.abc import Mapping

from merge.checkpoints.names.buffers import buffer_of
from merge.checkpoints.names.renamed import names_today
from merge.checkpoints.structure import Structure
from merge.checkpoints.weights.read import StoredTensor
from merge.errors import CheckpointError

LEGACY_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def canonical_name(name: str, structure: Structure) -> str:
    """Return the canonical name of a tensor stored as `name`, by rules that need no transformers."""
    prefix, expected = structure.prefix, structure.shapes
    for old, new in LEGACY_ENDINGS.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    if not prefix or name.startswith(f"{prefix}."):
        return name
    of_base = f"{prefix}.{name}" in expected if structure.writes_prefix else name in expected
    return f"{prefix}.{name}" if of_base else name


def canonicalise(
    stored: Mapping[str, StoredTensor], structure: Structure, source: str
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Return the tensors by their canonical names, and notes on those that were renamed.

    Raises:
        CheckpointError: two stored tensors have one canonical name.
    """
    expected = {canonical_name(name, structure) for name in structure.shapes}
    canonical = {name: canonical_name(name, structure) for name in stored}
    unexpected = [n for n in stored if canonical[n] not in expected and not buffer_of(n, len(stored[n].shape))]
    renamed = names_today(structure, unexpected)
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        today = [canonical_name(part, structure) for part in renamed.get(name, ())] or [canonical[name]]
        for new_name, block in zip(today, tensor.blocks(len(today)), strict=True):
            if new_name in tensors:
                raise CheckpointError(
                    f"{source}: {tensors[new_name].stored_name} and {name} are both stored and mean the same tensor {new_name}."
                )
            tensors[new_name] = block
    notes = []
    if legacy := sum(name.endswith(tuple(LEGACY_ENDINGS)) for name in stored):
        notes.append(f"{source}: {legacy} tensors with the old names gamma and beta read as weight and bias")
    if renamed:
        name, parts = next(iter(renamed.items()))
        notes.append(
            f"{source}: {len(renamed)} tensors with older names are read and written under those that transformers gives "
            f"them today: {name} as {', '.join(parts)}, for one"
        )
    return tensors, notes
