"""Repair: the spread that averaging takes from units given back to them, folded into weights and biases.

A unit of an average of models that never saw each other varies less than it did in any of them. For a linear layer
y = W x + b of the merge, with mean m and standard deviation d of y on calibration text,

    W' = diag(s) W,   b' = s b + t,   s = d* / d,   t = m* - s m,

gives every unit the mean m* and deviation d* that the models had, interpolated with the weights of the merge. No layer is
added: the result is an ordinary checkpoint.

Layers are repaired from the first to the last, each measured behind those that were repaired before it. What goes into the
stream through attention and what feed-forward units are given is repaired; queries, keys, values and feed-forward outputs
are left, and all layers are never measured at once: on models without a common start both made more merges worse.

Source: Jordan et al. 2023, arXiv:2211.08403 (REPAIR), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.solvers.moments import Moments
from merge.checkpoints.inputs import Batch
from merge.checkpoints.transformers_model import build, set_weights
from merge.errors import AlignmentError
from merge.progress import track
from merge.run.repair.sites import Site, find_sites, measure
from merge.symmetry.spec import PermutationSpec

# A unit whose variance is below this share of its layer's average varies by rounding only: it is left as it is.
DEAD = 1e-10


@dataclass(frozen=True)
class RepairedKind:
    """The layers of one kind.

    Attributes:
        units, dead: all of them, and those left as they were because they hardly vary.
        before, after: median over the other units of the merge's variance, as a share of what it should be; None without any.
        bias: whether means were set too.
    """

    kind: str
    layers: int
    units: int
    dead: int
    before: float | None
    after: float | None
    bias: bool


@dataclass(frozen=True)
class RepairReport:
    """What a repair did, on how many rows of activations it was measured."""

    kinds: tuple[RepairedKind, ...]
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        return {"rows": self.rows, "kinds": [asdict(kind) for kind in self.kinds]}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of it."""
        if not self.kinds:
            return ("repair: this architecture has no linear layers whose units can be repaired",)
        said = "; ".join(f"{k.kind} {k.before:.2f} -> {k.after:.2f}" for k in self.kinds if k.before and k.after)
        layers, dead = sum(k.layers for k in self.kinds), sum(k.dead for k in self.kinds)
        notes = [f"repair: variance of units as a share of the models' own, {layers} layers: {said or 'none varies'}"]
        if dead:
            notes.append(f"repair: {dead} units that hardly vary were left as they were")
        if lacking := [k.kind for k in self.kinds if not k.bias]:
            notes.append(f"repair: where layers have no bias, means are scaled and not set: {', '.join(lacking)}")
        return tuple(notes)


def repair(
    config: Mapping[str, Any],
    merged: Mapping[str, Tensor],
    endpoints: Iterable[Mapping[str, Tensor]],
    weights: Callable[[str], Sequence[float]],
    batches: Sequence[Batch],
    spec: PermutationSpec,
    written_name: Callable[[str], str],
) -> tuple[dict[str, Tensor], RepairReport]:
    """Return the merged tensors with the spread of every repaired layer's units set, each in its own dtype, and the figures.

    Args:
        merged: by canonical name.
        endpoints: the models as they were merged, in the basis of the merge; names they lack are the merge's.
        weights: from the name of a weight to what each endpoint counts there; they are normalised.
        spec: of the merged model.
    Raises:
        AlignmentError: there is no text, weights that no spread can be interpolated with, or rows that cannot be told from
            padding.
    """
    if not batches:
        raise AlignmentError("repair needs calibration text and a tokenizer. Leave out --repair without.")
    model = build(config, {written_name(name): tensor for name, tensor in merged.items()}, torch.float32)
    sites = {site.weight: site for site in find_sites(model, spec, merged, written_name)}
    before = measure(model, tuple(sites.values()), batches, "measuring the merge")
    found = tuple(sites[name] for name in before)  # in the order they run
    ends = []
    for end in endpoints:
        set_weights(model, {written_name(name): end.get(name, tensor) for name, tensor in merged.items()})
        ends.append(measure(model, found, batches, "measuring a model"))
    wanted = {site.weight: _between([end[site.weight] for end in ends], weights(site.weight)) for site in found}
    set_weights(model, {written_name(name): tensor for name, tensor in merged.items()})
    for site in track(found, "repairing layer by layer"):
        now = measure(model, (site,), batches, calls=before[site.weight].calls)
        _fold(model, site, now[site.weight], wanted[site.weight])
    own = dict(model.named_modules())
    out = dict(merged)
    for site in found:
        out[site.weight] = own[site.module].weight.detach().to(merged[site.weight].dtype)
        if site.bias is not None:
            out[site.bias] = own[site.module].bias.detach().to(merged[site.bias].dtype)
    set_weights(model, {written_name(name): tensor for name, tensor in out.items()})
    after = measure(model, found, batches, "measuring the repaired merge")
    return out, _report(found, before, after, wanted)


@dataclass(frozen=True)
class _Wanted:
    """The mean and deviation that units should have."""

    mean: Float[Tensor, " units"]
    deviation: Float[Tensor, " units"]


def _between(ends: Sequence[Moments], weights: Sequence[float]) -> _Wanted:
    """Return means and deviations half way, or as the weights have it, between those of the ends."""
    total = math.fsum(weights)
    if len(weights) != len(ends) or min(weights) < 0 or not total > 0:
        raise AlignmentError(
            f"repair: {len(ends)} models with weights {list(weights)}; spreads are interpolated with weights of at least 0, "
            "not all 0. Leave out --repair."
        )
    shares = [weight / total for weight in weights]
    mean, deviation = (
        torch.stack([share * getattr(end, what) for share, end in zip(shares, ends, strict=True)]).sum(0)
        for what in ("mean", "deviation")
    )
    return _Wanted(mean, deviation)


def _live(now: Moments, wanted: _Wanted) -> Tensor:
    """Return which units vary by more than rounding, in the merge and as they should."""
    squares = [x.deviation.square() for x in (now, wanted)]
    return torch.stack([square > DEAD * square.mean() for square in squares]).all(0)


def _fold(model: Any, site: Site, now: Moments, wanted: _Wanted) -> None:
    """Rewrite the weight and bias of a module, in place: the model is this repair's own."""
    module = model.get_submodule(site.module)
    live = _live(now, wanted)
    scale = torch.where(live, wanted.deviation / torch.where(live, now.deviation, 1.0), 1.0)
    shift = torch.where(live, wanted.mean - scale * now.mean, 0.0)
    with torch.no_grad():
        module.weight.copy_(module.weight.double() * (scale[:, None] if site.out == 0 else scale))
        if site.bias is not None:
            module.bias.copy_(module.bias.double() * scale + shift)


def _report(
    sites: Sequence[Site], before: Mapping[str, Moments], after: Mapping[str, Moments], wanted: Mapping[str, _Wanted]
) -> RepairReport:
    kinds = []
    for kind in dict.fromkeys(site.kind for site in sites):
        own = [site for site in sites if site.kind == kind]
        live = torch.cat([_live(before[site.weight], wanted[site.weight]) for site in own])
        due = torch.cat([wanted[site.weight].deviation for site in own])
        ratios = [
            (torch.cat([found[site.weight].deviation for site in own])[live] / due[live]).square()
            for found in (before, after)
        ]
        first, last = (float(ratio.median()) if len(ratio) else None for ratio in ratios)
        dead, bias = int((~live).sum()), all(site.bias is not None for site in own)
        kinds.append(RepairedKind(kind, len(own), len(live), dead, first, last, bias))
    return RepairReport(tuple(kinds), max((moments.count for moments in before.values()), default=0))
