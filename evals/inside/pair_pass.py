"""One pass over texts that measures LLFC, weak additivity and commutativity of two models at all sites at once.

Each batch goes through A, through B and, for every lam, through the interpolated model. Memory is bounded by three models (A and
B are the memory that their weights are in already) and the activations of one batch in two of them
(`evals.inside.texts.ACTIVATION_BYTES`); per text and site eight bytes times three sums remain for the baseline and for every lam.
Nothing grows with the tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from evals.inside.additivity import Additivity, RunningAdditivity, normalisation
from evals.inside.commutativity import Commutativity, RunningCommutativity, is_linear
from evals.inside.llfc import Connectivity, SiteConnectivity
from evals.inside.rows import Rows, see_sites
from evals.inside.sites import Site, Sites, sites_of
from evals.inside.sums import all_finite
from evals.inside.texts import BYTES, unpadded_batches
from merge.checkpoints.hooks import PaddingError, token_mask, token_rows, watching
from merge.checkpoints.inputs import Batch, Encoded, Tokens
from merge.errors import TaskError, some
from merge.progress import track

if TYPE_CHECKING:
    from torch import Tensor

# Address and run of a site; OUTPUT is that of the model's own logits.
Key = tuple[str, int]
OUTPUT: Key = ("", 0)
# Kinds of sites that are measured where none are named.
MEASURED = ("embeddings", "attention", "attention norm", "ffn hidden", "output", "pooler", "logits")


@dataclass(frozen=True)
class FeaturePlan:
    """What is measured of two models.

    Attributes:
        lams: of the interpolated models; the first is that of additivity.
        sites: names or kinds of sites for LLFC; those of MEASURED that the model has where empty.
        llfc_only: whether additivity and commutativity are left out; they are about half of the time.
    """

    lams: tuple[float, ...] = (0.5,)
    sites: tuple[str, ...] = ()
    llfc_only: bool = False


@dataclass(frozen=True)
class PairFeatures:
    """What one pass measured.

    Attributes:
        texts, tokens: how many were read.
        logits: of A, of B and of each lam, one row a text; empty where the model has none of whole texts.
        cut: texts that are longer than the model takes.
        batch_bytes: of the activations that the largest batch kept.
    """

    connectivity: tuple[SiteConnectivity, ...]
    additivity: tuple[Additivity, ...]
    commutativity: tuple[Commutativity, ...]
    texts: int
    tokens: int
    cut: int
    batch_bytes: int
    notes: tuple[str, ...] = ()
    logits: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class _Trio:
    """A, B and the model between them."""

    a: Any
    b: Any
    middle: Any

    def interpolate(self, lam: float) -> None:
        """Set the weights of the model between to (1 - lam) A + lam B."""
        ends = zip(self.a.state_dict().values(), self.b.state_dict().values(), strict=True)
        for target, (left, right) in zip(self.middle.state_dict().values(), ends, strict=True):
            if target.is_floating_point():
                torch.lerp(left, right, lam, out=target)
            else:
                target.copy_(left)


def measure_pair_features(
    model: Any, weights: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], tokens: Tokens, plan: FeaturePlan
) -> PairFeatures:
    """Return LLFC, additivity and commutativity of two models of one architecture.

    Args:
        model: of the architecture, on its device, in evaluation mode; it becomes the model between.
        weights: of A and of B, by the names that transformers writes.
        tokens: the texts, for both.
    Raises:
        UsageError: there is no such site.
        TaskError: features are not finite.
    """
    a, b = (_with_weights(model, tensors) for tensors in weights)
    trio = _Trio(a, b, model)
    sites = sites_of(model)
    kinds = {site.kind for site in sites.sites.values()}
    asked = sites.select(plan.sites or [kind for kind in MEASURED if kind in kinds])
    functions, linears, notes = ([], [], ()) if plan.llfc_only else _readers(trio, sites, plan.lams[0], _probe(tokens))
    wanted = [*asked, *(each.site for each in functions), *(each.site for each in linears)]
    unique = {_key(site): site for site in wanted}
    width = sum(rows.values.shape[1] for rows in _kept(trio.a, _probe(tokens), unique).values())
    encoded = unpadded_batches(tokens, 2 * BYTES * width)
    lines = [Connectivity(site, plan.lams, len(tokens.lengths)) for site in asked]
    logits = _run(trio, encoded, lines, [*functions, *linears], unique, plan.lams)
    return PairFeatures(
        connectivity=tuple(line.result for line in lines),
        additivity=tuple(each.result for each in functions),
        commutativity=tuple(each.result for each in linears),
        texts=len(tokens.lengths),
        tokens=sum(tokens.lengths),
        cut=tokens.cut,
        batch_bytes=2 * BYTES * width * max(int(batch["input_ids"].numel()) for batch in encoded.batches),
        notes=(*sites.notes, *notes),
        logits=logits,
    )


def _with_weights(model: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return a copy of a model whose parameters are these tensors themselves, so that no weight is in memory twice."""
    state, held = model.state_dict(keep_vars=True), {}
    for name, tensor in tensors.items():
        old, new = state[name], tensor.detach().to(state[name])
        held[id(old)] = torch.nn.Parameter(new, False) if isinstance(old, torch.nn.Parameter) else new
    return copy.deepcopy(model, held)


def _run(
    trio: _Trio,
    encoded: Encoded,
    lines: Sequence[Connectivity],
    readers: Sequence[RunningAdditivity | RunningCommutativity],
    unique: Mapping[Key, Site],
    lams: tuple[float, ...],
) -> dict[str, Tensor]:
    """Stream all batches through A, B and the models between; return the logits of each that has one row a text."""
    if len(lams) == 1:
        trio.interpolate(lams[0])
    of_lines = {_key(line.site): line for line in lines}
    sites = {key: unique[key] for key in of_lines}
    logits: dict[str, list[Tensor]] = {}
    for batch, rows in track(list(zip(encoded.batches, encoded.rows, strict=True)), "features"):
        texts = torch.tensor(rows, device=trio.a.device)
        a, b = _kept(trio.a, batch, unique), _kept(trio.b, batch, unique)
        for key, line in of_lines.items():
            line.add_ends(a[key], b[key], texts)
        for reader in readers:
            reader.add(a[_key(reader.site)], b[_key(reader.site)])
        outputs = {"a": a, "b": b}
        for lam in lams:
            if len(lams) > 1:
                trio.interpolate(lam)
            middle = outputs[str(lam)] = _kept(trio.middle, batch, sites)
            for key, line in of_lines.items():
                line.add_between(lam, a[key], b[key], middle[key], texts)
        for name, seen in outputs.items():
            if (output := seen.get(OUTPUT)) is not None and output.pooled:
                logits.setdefault(name, []).append(output.values.float().cpu())
    order = torch.tensor([row for rows in encoded.rows for row in rows]).argsort()
    return {name: torch.cat(values)[order] for name, values in logits.items()}


def _readers(
    trio: _Trio, sites: Sites, lam: float, batch: Batch
) -> tuple[list[RunningAdditivity], list[RunningCommutativity], tuple[str, ...]]:
    """Return what measures every activation, norm and linear layer of the layers; and notes on what is left out.

    Linear layers that read the same tensor share a site.
    """
    functions: list[RunningAdditivity] = []
    linears: list[RunningCommutativity] = []
    for layer in sites.layers:
        inside = dict(trio.a.get_submodule(layer.path).named_modules())
        of_b = trio.b.get_submodule(layer.path)
        hidden = sites.sites.get(f"layer {layer.number} ffn preactivation")
        if hidden is not None:
            own = trio.a.get_submodule(hidden.module)
            functions += [
                RunningAdditivity(hidden, type(own).__name__, own, lam),
                RunningAdditivity(hidden, "ReLU", torch.relu, lam),
            ]
        for path, module in inside.items():
            site = Site(f"layer {layer.number} {path}", path, layer.number, f"{layer.path}.{path}:in", layer.run)
            if sites.order:
                site = replace(site, address=f"{site.address}:{sites.order}")
            if is_linear(module):
                linears.append(RunningCommutativity(site, path, module, of_b.get_submodule(path)))
            elif (function := normalisation(module)) is not None:
                functions.append(RunningAdditivity(site, f"norm {path}", function, lam))
    return _readable(trio.a, batch, functions, linears)


def _readable(
    model: Any, batch: Batch, functions: list[RunningAdditivity], linears: list[RunningCommutativity]
) -> tuple[list[RunningAdditivity], list[RunningCommutativity], tuple[str, ...]]:
    """Leave out what reads no tokens (tables of positions); let layers that read the same tensor share its site."""
    sites = [*(each.site for each in functions), *(each.site for each in linears)]
    seen = _readings(model, batch, [site.address for site in sites])
    left_out = sorted({site.kind for site in sites if _key(site) not in seen})
    notes = (f"left out, because they do not read one row a token: {some(left_out)}",) if left_out else ()
    first: dict[int, Site] = {}
    for linear in linears:
        tensor = seen.get(_key(linear.site))
        if tensor is not None:
            linear.site = replace(first.setdefault(id(tensor), linear.site), layer=linear.site.layer)
    return (
        [each for each in functions if _key(each.site) in seen],
        [each for each in linears if _key(each.site) in seen],
        notes,
    )


def _readings(model: Any, batch: Batch, addresses: Sequence[str]) -> dict[Key, Tensor]:
    """Return, for every run of a module that reads one row a token or a text, the tensor that it reads."""
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    mask, runs, seen = token_mask(batch), dict.fromkeys(addresses, 0), dict[Key, Any]()

    def show(address: str, activation: Tensor) -> None:
        run, runs[address] = runs[address], runs[address] + 1
        with suppress(PaddingError):
            token_rows(activation, mask, *address.split(":")[2:])
            seen[address, run] = activation

    with torch.inference_mode(), watching(model, list(runs), show):
        model(**batch)
    return seen


def _key(site: Site) -> Key:
    return site.address, site.run


def _kept(model: Any, batch: Batch, unique: Mapping[Key, Site]) -> dict[Key, Rows]:
    """Return the rows of one batch at sites, copied: models may add to their activations in place later on."""
    kept: dict[Key, Rows] = {}

    def keep(site: Site, rows: Rows) -> None:
        if not all_finite(rows.values):
            raise TaskError(
                f"{site.name} of {type(model).__name__} is not finite on these texts: the weights are broken."
            )
        kept[_key(site)] = replace(rows, values=rows.values.clone())

    see_sites(model, batch, unique.values(), keep)
    return kept


def _probe(tokens: Tokens) -> Batch:
    """Return a batch of the first text."""
    length = tokens.lengths[0]
    return {name: values[:length][None] for name, values in tokens.fields.items()}
