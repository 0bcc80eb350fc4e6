"""Taps: the sites of a traced model where the units of each axis can be watched."""

from __future__ import annotations

from collections.abc import Mapping

from merge.symmetry.architectures.derive.factors import Factor
from merge.symmetry.architectures.derive.lines import Item, Table, Unsayable, item
from merge.symmetry.architectures.derive.specimen import Specimen, checkpoint_name
from merge.symmetry.architectures.derive.trace import Site, Trace

NORM, READ, MADE = 0, 1, 2


def taps_of(specimen: Specimen, trace: Trace, table: Table) -> dict[str, tuple[str, ...]]:
    """Return what stands along the last axis of an activation, in the notation, -> its sites.

    An axis is watched where it comes out of a norm, else where it goes into a module, else where it comes out of one;
    queries and keys where they are made, before anything turns them.
    """
    found: dict[str, dict[int, dict[str, list[str]]]] = {}
    for site in trace.sites:
        try:
            one = item(site.last)
        except Unsayable:
            continue
        moving = list(one.names())
        if len(site.shape) not in (2, 3) or any(factor not in table.names for factor in moving):
            continue
        key, address = _key(one, table), _address(specimen, site)
        for factor in moving:
            if factor not in table.inner.values():  # blocks are watched through what is inside them
                by_rank = found.setdefault(table.names[factor], {}).setdefault(_rank(site, factor), {})
                by_rank.setdefault(key, []).append(address)
    taps: dict[str, tuple[str, ...]] = {}
    for ranks in found.values():
        for key, addresses in ranks[min(ranks)].items():
            taps[key] = tuple(dict.fromkeys((*taps.get(key, ()), *addresses)))
    return taps


def _rank(site: Site, factor: Factor) -> int:
    if site.place == "out":
        return NORM if "Norm" in site.kind or factor.scored else MADE
    return READ


def _key(one: Item, table: Table) -> str:
    """Return the item in the notation; what lies inside blocks stands alone, as in tables by hand."""
    names: Mapping[Factor, str] = table.names
    last = one.levels[-1] if one.levels else None
    alone = last is not None and len(one.levels) == 2 and not one.parts
    return names[last] if alone and last is not None else one.write(names)


def _address(specimen: Specimen, site: Site) -> str:
    """Return `module:place`, with what tells how rows of units lie there: by time first, or under no mask of tokens."""
    mask = specimen.batches[0].get("attention_mask")
    shape = () if mask is None else tuple(mask.reshape(-1, mask.shape[-1]).shape)
    address = f"{checkpoint_name(specimen.structure, site.module)}:{site.place}"
    if len(site.shape) == 2:
        return address
    if site.shape[:2] == shape:
        return address
    return f"{address}:time" if site.shape[1::-1] == shape else f"{address}:image"
