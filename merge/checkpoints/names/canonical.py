"""Canonical names: those that transformers writes today, always with the base model's prefix."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from merge.checkpoints.names.buffers import buffer_of
from merge.checkpoints.names.renamed import converted_names, names_today
from merge.checkpoints.names.wrappers import completing_prefixes, outer_prefixes, without_wrappers
from merge.checkpoints.structure import Structure
from merge.checkpoints.weights.read import StoredTensor
from merge.errors import CheckpointError, some

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
) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor], list[str]]:
    """Return the tensors by their canonical names, those that the class does not have, and notes on what was renamed.

    Raises:
        CheckpointError: two stored tensors have one canonical name, or a file holds two models.
    """
    expected = expected_names(structure)
    plain, notes = _unwrapped(stored, structure, expected, source)
    canonical = {name: canonical_name(plain[name], structure) for name in stored}
    unexpected = {plain[n]: n for n in stored if _is_unknown(canonical[n], stored[n], expected)}
    renamed = {unexpected[name]: parts for name, parts in names_today(structure, unexpected).items()}
    foreign = [name for name, stored_name in unexpected.items() if stored_name not in renamed]
    converted = {unexpected[name] for name in converted_names(structure, foreign)}
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        today = [canonical_name(part, structure) for part in renamed.get(name, ())] or [canonical[name]]
        for new_name, block in zip(today, tensor.blocks(len(today)), strict=True):
            if new_name in tensors:
                raise CheckpointError(
                    f"{source}: {tensors[new_name].stored_name} and {name} are both stored and mean the same tensor {new_name}."
                )
            tensors[new_name] = replace(block, converted=True) if name in converted else block
    if legacy := sum(name.endswith(tuple(LEGACY_ENDINGS)) for name in stored):
        notes.append(f"{source}: {legacy} tensors with the old names gamma and beta read as weight and bias")
    if renamed:
        name, parts = next(iter(renamed.items()))
        notes.append(
            f"{source}: {len(renamed)} tensors with older names are read and written under those that transformers gives "
            f"them today: {name} as {', '.join(parts)}, for one"
        )
    extra = {n: t for n, t in tensors.items() if _is_unknown(n, t, expected) and not t.converted}
    return {n: t for n, t in tensors.items() if n not in extra}, extra, notes


def expected_names(structure: Structure) -> set[str]:
    """Return the canonical names of all tensors of a class, tied ones under each of their names."""
    return {canonical_name(name, structure) for name in structure.shapes}


def lacking_weights(structure: Structure, names: Collection[str]) -> list[str]:
    """Return what a file with these canonical names lacks of a class: from_pretrained would fill it with random numbers.

    A base model's pooler does not count, which many files of embedding models leave out.
    """
    required = [canonical_name(name, structure) for name in structure.required]
    twins = {
        canonical_name(source, structure) for target, source in structure.ties.items() if _has(target, structure, names)
    }
    return [n for n in required if n not in names and n not in twins and not (".pooler." in n and is_base(structure))]


def _has(name: str, structure: Structure, names: Collection[str]) -> bool:
    return canonical_name(name, structure) in names


def is_base(structure: Structure) -> bool:
    """Return whether a class is a base model, without a task head."""
    return structure.base_architecture == structure.architecture


def _is_unknown(name: str, tensor: StoredTensor, expected: Collection[str]) -> bool:
    return name not in expected and buffer_of(name, len(tensor.shape)) is None


def _unwrapped(
    stored: Mapping[str, StoredTensor], structure: Structure, expected: Collection[str], source: str
) -> tuple[dict[str, str], list[str]]:
    """Return stored name -> the name without what a training program or a class around the model put into it, and a note.

    Raises:
        CheckpointError: the file holds the base model under several prefixes.
    """
    plain = {name: name if canonical_name(name, structure) in expected else without_wrappers(name) for name in stored}
    notes = []
    if wrapped := [name for name in stored if plain[name] != name]:
        first = wrapped[0]
        notes.append(
            f"{source}: {len(wrapped)} tensors were saved through a wrapper of the training program; read without its "
            f"names: {first} as {plain[first]}, for one"
        )
    foreign = [name for name in plain.values() if canonical_name(name, structure) not in expected]
    renamed = names_today(structure, foreign)  # by transformers' own rules, which come first
    foreign = [name for name in foreign if name not in renamed]
    today = [*plain.values(), *(part for parts in renamed.values() for part in parts)]
    meant = {canonical_name(name, structure) for name in today}
    lacking = [name for name in lacking_weights(structure, meant) if _of_base(name, structure)]
    if not lacking or not foreign:
        return plain, notes
    targets = {
        prefix: {n: canonical_name(n.removeprefix(prefix), structure) for n in foreign if n.startswith(prefix)}
        for prefix in outer_prefixes(foreign)
    }
    complete = completing_prefixes(lacking, targets)
    if len(complete) > 1:
        raise CheckpointError(
            f"{source} holds {len(complete)} models, under {some([repr(p) for p in complete])}, where "
            f"{structure.architecture} is one. Save the one that is meant with save_pretrained."
        )
    for prefix in complete:
        notes.append(
            f"{source}: {len(targets[prefix])} tensors have names that begin with {prefix}, which "
            f"{structure.architecture} does not know; read without"
        )
        plain = {old: n.removeprefix(prefix) if n in targets[prefix] else n for old, n in plain.items()}
    return plain, notes


def _of_base(name: str, structure: Structure) -> bool:
    return name.startswith(f"{structure.prefix}.") or not structure.writes_prefix
