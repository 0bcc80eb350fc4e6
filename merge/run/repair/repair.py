"""Repair a merge: give units the means and variances that they had in the models, folded into weights and biases.

A unit of an average of independently trained models varies less than in any of them. For a linear layer y = W x + b of the
merge, with mean m and standard deviation d of y on calibration text,

    W' = diag(s) W,   b' = s b + t,   s = d* / d,   t = m* - s m,

gives every unit the mean m* and deviation d* that the models had, interpolated with the weights of the merge. No layer is
added: the result is an ordinary checkpoint.

Layers are repaired from the first to the last, each measured with all layers before it repaired. Repaired are the outputs
of attention and the inputs of feed-forward units, not queries, keys, values and feed-forward outputs; and never are all
layers measured at once: on models without a common start both made more merges worse.

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

from merge.alignment.solvers.cross_moments import Moments
from merge.checkpoints.inputs import Batch
from merge.checkpoints.transformers_model import build, set_weights
from merge.errors import AlignmentError
from merge.progress import track
from merge.run.repair.sites import Site, find_sites, measure
from merge.symmetry.spec import PermutationSpec

# A unit whose variance is below this share of its layer's average varies by rounding only, and is not repaired.
DEAD_UNIT_VARIANCE = 1e-10


@dataclass(frozen=True)
class RepairedKind:
    """The repair of the layers of one kind.

    Attributes:
        units, dead: the number of units, and of those that hardly vary and are not repaired.
        before, after: median over the other units of the merge's variance, as a share of the target; None without any.
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
    """What a repair did, and the number of rows of activations that it was measured on."""

    kinds: tuple[RepairedKind, ...]
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        return {"rows": self.rows, "kinds": [asdict(kind) for kind in self.kinds]}

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user."""
        if not self.kinds:
            return ("repair: this architecture has no linear layers whose units can be repaired",)
        shares = "; ".join(f"{k.kind} {k.before:.2f} -> {k.after:.2f}" for k in self.kinds if k.before and k.after)
        layers, dead = sum(k.layers for k in self.kinds), sum(k.dead for k in self.kinds)
        notes = [f"repair: variance of units as a share of the models' own, {layers} layers: {shares or 'none varies'}"]
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
        weights: name of a weight -> the weight of each endpoint in it; they are normalised.
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
    ordered = tuple(sites[name] for name in before)  # in the order they run
    moments = []
    for tensors in endpoints:
        set_weights(model, {written_name(name): tensors.get(name, tensor) for name, tensor in merged.items()})
        moments.append(measure(model, ordered, batches, "measuring a model"))
    targets = {
        site.weight: _interpolated([of_model[site.weight] for of_model in moments], weights(site.weight))
        for site in ordered
    }
    set_weights(model, {written_name(name): tensor for name, tensor in merged.items()})
    for site in track(ordered, "repairing layer by layer"):
        now = measure(model, (site,), batches, calls=before[site.weight].calls)
        _fold(model, site, now[site.weight], targets[site.weight])
    modules = dict(model.named_modules())
    out = dict(merged)
    for site in ordered:
        out[site.weight] = modules[site.module].weight.detach().to(merged[site.weight].dtype)
        if site.bias is not None:
            out[site.bias] = modules[site.module].bias.detach().to(merged[site.bias].dtype)
    set_weights(model, {written_name(name): tensor for name, tensor in out.items()})
    after = measure(model, ordered, batches, "measuring the repaired merge")
    return out, _report(ordered, before, after, targets)


@dataclass(frozen=True)
class _Target:
    """The mean and deviation that units should have."""

    mean: Float[Tensor, " units"]
    deviation: Float[Tensor, " units"]


def _interpolated(endpoints: Sequence[Moments], weights: Sequence[float]) -> _Target:
    """Return the weighted average of the means and of the deviations of the endpoints."""
    total = math.fsum(weights)
    if len(weights) != len(endpoints) or min(weights) < 0 or not total > 0:
        raise AlignmentError(
            f"repair: {len(endpoints)} models with weights {list(weights)}; spreads are interpolated with weights of at least 0, "
            "not all 0. Leave out --repair."
        )
    shares = [weight / total for weight in weights]
    mean, deviation = (
        torch.stack([share * getattr(each, name) for share, each in zip(shares, endpoints, strict=True)]).sum(0)
        for name in ("mean", "deviation")
    )
    return _Target(mean, deviation)


def _live(now: Moments, target: _Target) -> Tensor:
    """Return which units vary by more than rounding, both in the merge and in the target."""
    squares = [x.deviation.square() for x in (now, target)]
    return torch.stack([square > DEAD_UNIT_VARIANCE * square.mean() for square in squares]).all(0)


def _fold(model: Any, site: Site, now: Moments, target: _Target) -> None:
    """Rewrite the weight and bias of a module in place: nobody else uses this model."""
    module = model.get_submodule(site.module)
    live = _live(now, target)
    scale = torch.where(live, target.deviation / torch.where(live, now.deviation, 1.0), 1.0)
    shift = torch.where(live, target.mean - scale * now.mean, 0.0)
    with torch.no_grad():
        module.weight.copy_(module.weight.double() * (scale[:, None] if site.out == 0 else scale))
        if site.bias is not None:
            module.bias.copy_(module.bias.double() * scale + shift)


def _report(
    sites: Sequence[Site], before: Mapping[str, Moments], after: Mapping[str, Moments], targets: Mapping[str, _Target]
) -> RepairReport:
    kinds = []
    for kind in dict.fromkeys(site.kind for site in sites):
        of_kind = [site for site in sites if site.kind == kind]
        live = torch.cat([_live(before[site.weight], targets[site.weight]) for site in of_kind])
        deviations = torch.cat([targets[site.weight].deviation for site in of_kind])
        ratios = [
            (torch.cat([moments[site.weight].deviation for site in of_kind])[live] / deviations[live]).square()
            for moments in (before, after)
        ]
        first, last = (float(ratio.median()) if len(ratio) else None for ratio in ratios)
        dead, bias = int((~live).sum()), all(site.bias is not None for site in of_kind)
        kinds.append(RepairedKind(kind, len(of_kind), len(live), dead, first, last, bias))
    return RepairReport(tuple(kinds), max((moments.count for moments in before.values()), default=0))
