"""Taps: where in a traced model the units of each axis can be hooked."""

from __future__ import annotations

from collections.abc import Mapping

from merge.symmetry.architectures.derive.factors import Factor
from merge.symmetry.architectures.derive.lines import Inexpressible, Item, Table, item_of
from merge.symmetry.architectures.derive.specimen import Specimen, checkpoint_name
from merge.symmetry.architectures.derive.trace import Site, Trace

# Ranks of a site, the best first: the output of a norm, the input of a module, the output of another module.
NORM_OUTPUT, INPUT, OUTPUT = 0, 1, 2


def taps_of(specimen: Specimen, trace: Trace, table: Table) -> dict[str, tuple[str, ...]]:
    """Return the last axis of an activation, in the notation -> its sites, as PermutationSpec.taps.

    An axis is hooked at the outputs of norms, else at the inputs of modules, else at the outputs of modules; queries
    and keys at the outputs of their projections, before rotary positions act on them.
    """
    ranked: dict[str, dict[int, dict[str, list[str]]]] = {}  # axis -> rank -> item -> sites
    for site in trace.sites:
        try:
            item = item_of(site.last)
        except Inexpressible:
            continue
        factors = list(item.names())
        if len(site.shape) not in (2, 3) or any(factor not in table.names for factor in factors):
            continue
        key, address = _key(item, table), _address(specimen, site)
        for factor in factors:
            if factor not in table.inner.values():  # blocks are hooked through the units inside them
                by_rank = ranked.setdefault(table.names[factor], {}).setdefault(_rank(site, factor), {})
                by_rank.setdefault(key, []).append(address)
    taps: dict[str, tuple[str, ...]] = {}
    for ranks in ranked.values():
        for key, addresses in ranks[min(ranks)].items():
            taps[key] = tuple(dict.fromkeys((*taps.get(key, ()), *addresses)))
    return taps


def _rank(site: Site, factor: Factor) -> int:
    if site.side == "out":
        return NORM_OUTPUT if "Norm" in site.kind or factor.scored else OUTPUT
    return INPUT


def _key(item: Item, table: Table) -> str:
    """Return the item in the notation; the name of an axis inside blocks alone, as in tables written by hand."""
    names: Mapping[Factor, str] = table.names
    last = item.levels[-1] if item.levels else None
    alone = last is not None and len(item.levels) == 2 and not item.parts
    return names[last] if alone and last is not None else item.write(names)


def _address(specimen: Specimen, site: Site) -> str:
    """Return `module:side`, then `:time` if activations are (tokens, texts, units), or `:image` if no mask applies."""
    mask = specimen.batches[0].get("attention_mask")
    shape = () if mask is None else tuple(mask.reshape(-1, mask.shape[-1]).shape)
    address = f"{checkpoint_name(specimen.structure, site.module)}:{site.side}"
    if len(site.shape) == 2:
        return address
    if site.shape[:2] == shape:
        return address
    return f"{address}:time" if site.shape[1::-1] == shape else f"{address}:image"
