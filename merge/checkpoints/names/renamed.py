"""Renamed tensors: today's names of tensors that older versions of transformers, or a model's authors, named otherwise.

The table is the one that transformers uses to load such files: ViT's `attention.attention.query` is `attention.q_proj`
today, Nomic BERT's fused `Wqkv` three tensors. Reading it takes an import of transformers, so its answers are cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from merge.disk.cache import cache_key, read_cached, write_cached

if TYPE_CHECKING:
    from merge.checkpoints.structure import Structure

FORMAT = 1


def names_today(structure: Structure, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return stored name -> today's names, for those names that transformers changes when it loads this model.

    There are several where one stored tensor holds the rows of several tensors of today, one after the other. Names that no
    rule leads to a tensor of this model are absent, and so are those whose tensors transformers splits in another way.
    """
    stored = sorted(names)
    if not stored:
        return {}
    key = cache_key(FORMAT, structure.key, stored)
    renamed: Mapping[str, Any] | None = read_cached("names", key)
    if renamed is None:
        renamed = _ask_transformers(structure, stored)
        write_cached("names", key, renamed)
    return {name: tuple(parts) for name, parts in renamed.items()}


def converted_names(structure: Structure, names: Iterable[str]) -> frozenset[str]:
    """Return those names whose tensors transformers makes others of when it loads this model, such as stacks of experts."""
    stored = sorted(names)
    if not stored:
        return frozenset()
    key = cache_key(FORMAT, structure.key, stored)
    converted = read_cached("converted", key)
    if not isinstance(converted, list):
        converted = _ask_converted(structure, stored)
        write_cached("converted", key, converted)
    return frozenset(converted)


def _ask_converted(structure: Structure, names: Iterable[str]) -> list[str]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    from merge.checkpoints.transformers_model import meta_model

    skeleton = meta_model(structure.config)
    expected, rules = skeleton.state_dict(), get_model_conversion_mapping(skeleton)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    if not converters:
        return []
    renamed = {name: rename_source_key(name, renamings, converters, structure.prefix, expected) for name in names}
    return [name for name, (target, pattern) in renamed.items() if pattern is not None and target in expected]


def _ask_transformers(structure: Structure, names: Iterable[str]) -> dict[str, list[str]]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming, rename_source_key

    from merge.checkpoints.transformers_model import meta_model

    skeleton = meta_model(structure.config)
    expected = skeleton.state_dict()
    rules = get_model_conversion_mapping(skeleton)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamed: dict[str, list[str]] = {}
    for name in names:
        first, pattern = rename_source_key(name, renamings, converters, structure.prefix, expected)
        parts = [first]
        if pattern is not None:
            rule = next(converter for converter in converters if pattern in converter.source_patterns)
            split = rule.operations[0]
            by_rows = isinstance(split, Chunk) and split.dim == 0 and split.num_shards_attribute is None
            if not by_rows or len(rule.operations) > 1 or len(rule.source_patterns) > 1:
                continue
            parts = [first.replace(rule.target_patterns[0], target, 1) for target in rule.target_patterns]
        if first != name and all(part in expected for part in parts):
            renamed[name] = parts
    return renamed
