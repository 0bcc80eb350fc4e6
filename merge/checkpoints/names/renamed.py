"""Legacy names: what transformers calls a tensor today that a file names as transformers or the model's authors once did.

The table is transformers' own, which it keeps for loading such files: ViT's `attention.attention.query` is
`attention.q_proj`, Nomic BERT's fused `Wqkv` three tensors. Asking it takes an import of transformers, so what it said of
a list of names is cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from merge.disk.cache import cache_key, read_cached, write_cached

if TYPE_CHECKING:
    from merge.checkpoints.structure import Structure

FORMAT = 1


def names_today(structure: Structure, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return, of the stored names that transformers renames when it loads this model, what it renames each to.

    Several names where a file holds in one tensor, block of rows after block of rows, what now are tensors of their own.
    Names that no rule leads to a tensor of this model are absent, and so are those whose tensors transformers takes
    apart in another way.
    """
    asked = sorted(names)
    if not asked:
        return {}
    key = cache_key(FORMAT, structure.key, asked)
    found: Mapping[str, Any] | None = read_cached("names", key)
    if found is None:
        found = _ask_transformers(structure, asked)
        write_cached("names", key, found)
    return {name: tuple(parts) for name, parts in found.items()}


def _ask_transformers(structure: Structure, names: Iterable[str]) -> dict[str, list[str]]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming, rename_source_key

    from merge.checkpoints.transformers_model import meta_model

    skeleton = meta_model(structure.config)
    expected = skeleton.state_dict()
    rules = get_model_conversion_mapping(skeleton)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    found: dict[str, list[str]] = {}
    for name in names:
        first, pattern = rename_source_key(name, renamings, converters, structure.prefix, expected)
        parts = [first]
        if pattern is not None:
            rule = next(converter for converter in converters if pattern in converter.source_patterns)
            cut = rule.operations[0]
            by_rows = isinstance(cut, Chunk) and cut.dim == 0 and cut.num_shards_attribute is None
            if not by_rows or len(rule.operations) > 1 or len(rule.source_patterns) > 1:
                continue
            parts = [first.replace(rule.target_patterns[0], target, 1) for target in rule.target_patterns]
        if first != name and all(part in expected for part in parts):
            found[name] = parts
    return found
