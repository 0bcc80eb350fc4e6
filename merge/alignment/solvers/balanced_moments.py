"""How alike units of two balanced models respond to a text, from a run of the models as they are.

Balanced (`merge.alignment.solvers.balance`), a model has the activations it had but for maps inside its heads, so the moments
follow from those of the model as it is: covariances from both sides' maps, correlations unchanged by scales. Whether a site
takes a map or its inverse transpose (queries and keys) is seen on a few tokens, on which one model is run in both forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.pair import Pair, in_dtype
from merge.alignment.solvers.cross_moments import MIXING_GROUPS, CrossMoments
from merge.alignment.solvers.moments import Compared, activations, compare_units, level_names
from merge.checkpoints.inputs import Batch
from merge.symmetry.maps import map_units
from merge.symmetry.notation import View
from merge.symmetry.permutation import unit_positions
from merge.symmetry.transform import Transform, apply_transform

# Tokens on which a model is run in both forms.
TOKENS = 64
# The largest relative difference of activations after the right map: of float32 and of a map that stretches a lot.
MAX_DIFFERENCE = 1e-3
# Scales that differ by more might make a unit that varies as much as others one that hardly does.
MAX_SCALES = 1e3


@dataclass(frozen=True)
class Similarity:
    """How alike the units of one line respond.

    Attributes:
        units: their number.
        measured: from the sizes of the line's levels to the similarities, these sizes twice; float64.
    """

    units: int
    measured: Callable[[tuple[int, ...]], Float[Tensor, ...]]


@dataclass(frozen=True)
class _Forms:
    """The maps that balance both models, and for each site and view whether they or their inverse transposes act there."""

    a: Transform
    b: Transform
    dual: Mapping[tuple[str, View], bool]

    def maps_at(self, moments: CrossMoments) -> list[Tensor | None]:
        """Return the maps of both models at the view of some moments; None where none acts."""
        view = moments.view
        assert view is not None
        maps = []
        for side in (self.a, self.b):
            acting = side.duals if self.dual.get((moments.site, view), False) else side.maps
            maps.append(acting.get(view.map_axis))
        return maps


def balanced_similarities(
    pair: Pair, balance_a: Transform, balance_b: Transform, groups: Mapping[str, str]
) -> tuple[Compared, dict[str, Similarity]] | None:
    """Return what both models gave, and by line how alike units of the balanced models respond; the text is run once at most.

    Args:
        groups: axis -> group that acts on it.
    Returns:
        None where that does not follow from a run of the models as they are.
    """
    scales = [mapped for side in (balance_a, balance_b) for mapped in side.maps.values() if _is_scale(mapped)]
    if any(float(mapped.abs().max() / mapped.abs().min()) > MAX_SCALES for mapped in scales):
        return None
    compared = compare_units(pair)
    key = "maps at sites", frozenset(balance_a.maps)
    dual = pair.once(key, lambda: _dual_sites(pair, balance_a, compared))
    if dual is None:
        return None
    forms, lines = _Forms(balance_a, balance_b, dual), dict[str, Similarity]()
    for line in compared.lines:
        mixes = groups.get(level_names(line)[1]) in MIXING_GROUPS
        measured = _covariances(compared.sites[line], forms) if mixes else _correlations(compared, line)
        lines[line] = Similarity(len(compared.lines[line]), measured)
    return compared, lines


def _is_scale(mapped: Tensor) -> bool:
    """Return whether a map of `balance` is a factor for each unit; matrices are of one more dimension, and square."""
    return mapped.ndim == 1 or (mapped.ndim == 2 and mapped.shape[0] != mapped.shape[1])


def _correlations(compared: Compared, line: str) -> Callable[[tuple[int, ...]], Tensor]:
    return lambda shape: compared.lines[line].double().reshape(*shape, *shape)


def _covariances(sites: Sequence[CrossMoments], forms: _Forms) -> Callable[[tuple[int, ...]], Tensor]:
    def similarity(shape: tuple[int, ...]) -> Tensor:
        total = relative_covariance(sites[0], shape, *forms.maps_at(sites[0]))
        for site in sites[1:]:
            total += relative_covariance(site, shape, *forms.maps_at(site))
        return total / len(sites)

    return similarity


def relative_covariance(
    site: CrossMoments, shape: tuple[int, ...], map_a: Tensor | None = None, map_b: Tensor | None = None
) -> Tensor:
    """Return covariances over the root of the mean variances of the blocks that the two units are in.

    Args:
        map_a, map_b: matrices by block that act on the units first; None for none.
    """
    covariance, *variances = site.covariance()
    blocks, n = math.prod(shape[:-1]), shape[-1]
    means = [variance.reshape(blocks, n).mean(1) for variance in variances]
    maps = [None if m is None else _by_block(m, shape) for m in (map_a, map_b)]
    own = site.own_covariances() if any(m is not None for m in maps) else []
    for k, (m, moved) in enumerate(zip(maps, own, strict=False)):
        if m is not None:
            means[k] = (m @ moved * m).sum((1, 2)) / n
    if maps[0] is not None:
        covariance = (maps[0] @ covariance.reshape(blocks, n, -1)).reshape(covariance.shape)
    if maps[1] is not None:
        columns = covariance.reshape(-1, blocks, n).movedim(1, 0) @ maps[1].mT
        covariance = columns.movedim(0, 1).reshape(covariance.shape)
    factors = [torch.where(mean > 0, mean, torch.inf).rsqrt().repeat_interleave(n) for mean in means]
    return (covariance * factors[0][:, None] * factors[1]).reshape(*shape, *shape)


def _by_block(mapped: Tensor, shape: tuple[int, ...]) -> Float[Tensor, "blocks n n"]:
    """Return the map of every block: all query heads of a key/value head have that of the head."""
    matrices = mapped.reshape(-1, shape[-1], shape[-1])
    return matrices.repeat_interleave(math.prod(shape[:-1]) // len(matrices), 0)


def _dual_sites(pair: Pair, balance: Transform, compared: Compared) -> dict[tuple[str, View], bool] | None:
    """Return for each site and view on which a map of a acts whether its inverse transpose acts there; None if neither does."""
    acted = [(moments.site, moments.view) for sites in compared.sites.values() for moments in sites]
    views = [(site, view) for site, view in acted if view is not None and view.map_axis in balance.maps]
    if not views:
        return {}
    balanced = replace(pair, a=apply_transform(pair.spec, balance, pair.a))
    sites = tuple(dict.fromkeys(site for site, _ in views))
    plain, moved = (activations(each, each.a, _few(pair.batches[0]), sites) for each in (pair, balanced))
    dual = {}
    for site, view in views:
        positions = unit_positions(view).reshape(-1)
        before, after = (torch.cat(rows[site])[:, positions].double() for rows in (plain, moved))
        candidates = (side[view.map_axis].contiguous() for side in (balance.maps, balance.duals))
        errors = [float((map_units(m, view.shape, before) - after).norm()) for m in candidates]
        if not min(errors) <= MAX_DIFFERENCE * float(after.norm()):
            return None
        dual[site, view] = errors[1] < errors[0]
    return dual


def _few(batch: Batch) -> Batch:
    """Return the first texts of a batch, about TOKENS tokens of them."""
    texts = len(next(iter(batch.values())))
    if "input_ids" in batch and all(len(tensor) == texts for tensor in batch.values()):
        few = max(1, TOKENS * texts // batch["input_ids"].numel())
        batch = {name: tensor[:few] for name, tensor in batch.items()}
    return in_dtype(batch, torch.float32)
