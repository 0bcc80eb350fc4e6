"""The linear layers that a repair measures, and the means and variances of their units on text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.pair import in_dtype
from merge.alignment.solvers.cross_moments import Moments
from merge.checkpoints.hooks import PaddingError, token_mask, token_rows, watching
from merge.checkpoints.inputs import Batch
from merge.errors import AlignmentError
from merge.progress import track
from merge.symmetry.spec import PermutationSpec

# The last word of the kind of axis whose units are repaired in the layer that computes them.
COMPUTED = "ffn"


@dataclass(frozen=True)
class Site:
    """A linear layer that is repaired.

    Attributes:
        module: its path in the model.
        weight: canonical name.
        bias: canonical name; None where the layer has none and only variances can be set.
        out: the axis of the weight that its units are on.
        kind: "kind of axis read -> kind of axis written".
        order: the order of the axes of its output, as in the taps of a spec: "", "time" or "all".
    """

    module: str
    weight: str
    bias: str | None
    out: int
    kind: str
    order: str


def find_sites(
    model: Any, spec: PermutationSpec, names: Iterable[str], written_name: Callable[[str], str]
) -> tuple[Site, ...]:
    """Return the linear layers that compute feed-forward units, or read the output of attention heads.

    A layer that shares its weight with another module (an embedding table) is none of them.
    """
    modules, uses, existing = dict(model.named_modules()), dict[int, int](), frozenset(names)
    for module in modules.values():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    sites = []
    for name in names:
        path = written_name(name).removesuffix(".weight")
        out = _out_axis(modules.get(path))
        if out is None or not name.endswith(".weight") or uses[id(modules[path].weight)] > 1:
            continue
        into, made = (spec.axes(name)[k] for k in (1 - out, out))
        if made.fixed or made.parts or len(made.names) > 1 or made.names[0] in spec.named:
            continue
        written, heads = spec.kind(made.names[0]), bool(into.nested())
        if not heads and written.rsplit("_", 1)[-1] != COMPUTED:
            continue
        read = spec.kind(into.axis_names()[0]) if into.axis_names() else "inputs"
        bias = name.removesuffix("weight") + "bias"
        order = _order(spec, name.removesuffix(".weight"))
        sites.append(Site(path, name, bias if bias in existing else None, out, f"{read} -> {written}", order))
    return tuple(sites)


def _out_axis(module: Any) -> int | None:
    """Return the axis of a linear layer's weight that its units are on; None for any other module."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return 0 if isinstance(module, nn.Linear) else 1 if isinstance(module, Conv1D) else None


def _order(spec: PermutationSpec, module: str) -> str:
    """Return the order of the axes of a module's output: that of the tap with the longest common path in the spec."""
    path, best, order = module.split("."), -1, ""
    for site in (site for sites in spec.taps.values() for site in sites):
        other, *rest = site.split(":")
        common = next((k for k, (x, y) in enumerate(zip(path, other.split("."), strict=False)) if x != y), len(path))
        if common > best:
            best, order = common, rest[1] if len(rest) > 1 else ""
    return order


class _EnoughError(Exception):
    """Ends a forward pass once all layers that are measured have run."""


def measure(
    model: Any,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    label: str = "",
    calls: int | None = None,
) -> dict[str, Moments]:
    """Return the moments of every site's units, by the name of its weight, in the order the layers run; padding is left out.

    Args:
        calls: how often the sites run, over all batches; a forward pass then ends after its share of them.
    Raises:
        AlignmentError: rows cannot be told from padding.
    """
    moments: dict[str, Moments] = {}
    share = None if calls is None else calls // len(batches)
    watched = {f"{site.module}:out": site for site in sites}
    with torch.inference_mode():
        for batch in track(batches, label) if label else batches:
            mask, seen = token_mask(batch), 0

            def add(name: str, output: Tensor, mask: Tensor | None = mask) -> None:
                nonlocal seen
                site = watched[name]
                moments.setdefault(site.weight, Moments()).add(_rows(output, mask, site).double())
                seen += 1
                if seen == share:
                    raise _EnoughError

            with suppress(_EnoughError), watching(model, watched, add):
                model(**in_dtype(batch, torch.float32))
    return moments


def _rows(output: Tensor, mask: Tensor | None, site: Site) -> Float[Tensor, "rows units"]:
    try:
        return token_rows(output, mask, site.order)
    except PaddingError as error:
        raise AlignmentError(f"repair: the layer of {site.weight}: {error}. Leave out --repair.") from error
