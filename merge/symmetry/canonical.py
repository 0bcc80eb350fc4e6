"""Gauges: rewriting a model's weights without changing its function, so that only what counts is compared.

`canonical` puts to zero what the outputs cannot show (the key bias, the mean of what is written before a LayerNorm) and
moves the value bias to where it acts. `fold_norms` gives the gains of a pre-LN model's norms to the weights that read
them: after it the residual stream may be rotated. What a family has is listed in `merge.symmetry.architectures.gauges`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from merge.checkpoints.structure import structure_of
from merge.errors import SpecError
from merge.symmetry.architectures import spec_for
from merge.symmetry.architectures.gauges import GAUGES
from merge.symmetry.notation import TensorAxis
from merge.symmetry.permutation import places
from merge.symmetry.spec import PermutationSpec

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Folded:
    """A model whose norms have gain one.

    Attributes:
        tensors: by canonical name; an output head that was tied to the word embeddings is a tensor of its own now.
        config: which says so.
        notes: what a user must know of it.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def canonical(spec: PermutationSpec, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the weights with everything at zero that the outputs cannot show: the same function.

    b_K = 0;  b_O = b_O + W_O b_V, b_V = 0;  W_O, b_O, W_2, b_2 and embedding tables minus their mean over the units of
    the stream. Computed in float64, returned in the dtypes given; tensors that stay are the same objects. Of a family
    without an entry in GAUGES nothing changes.
    """
    gauges = GAUGES.get(spec.family)
    if gauges is None:
        return dict(tensors)
    out = dict(tensors)
    for name in _ending(out, gauges.keys, "bias"):
        out[name] = _zeroed(out[name], _inside(spec, name, out[name], "qk", "in"))
    for value, reader in gauges.values.items():
        for name in _ending(out, (value,), "bias"):
            stem = name.removesuffix(f"{value}.bias")
            _fold_value(spec, out, name, f"{stem}{reader}")
    read = set(structure_of(config).ties.values())
    tables = [name for name in _ending(out, gauges.tables, "weight") if not any(name.endswith(tied) for tied in read)]
    written = [*_ending(out, gauges.writers, "weight"), *_ending(out, gauges.writers, "bias")]
    for name in [*written, *tables]:
        out[name] = _centred(out[name], _stream(spec, name))
    return out


def fold_norms(spec: PermutationSpec, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Folded:
    """Return the same function with the gain of every norm one: W' = W diag(g), b' = b / g, g' = 1.

    A tied output head reads the last norm, the word embeddings do not: it becomes a tensor of its own, and the config
    says `tie_word_embeddings: false`. Computed in float64, returned in the dtypes given.

    Raises:
        SpecError: the family's norms cannot be folded, the model has no head behind the last norm, or a gain is zero.
    Source: the pre-LN invariance of Zhang et al. 2025 and Theus et al. 2025, with LayerNorm left as it is.
    """
    gauges = GAUGES.get(spec.family)
    if gauges is None or gauges.last is None:
        raise SpecError(
            f"the residual stream of {spec.family} cannot be rotated: gains of its norms stand in the stream, or nothing is "
            "known of what reads them. Use --residual permutation or --residual identity."
        )
    if any(item.names == ("residual",) for line in spec.outputs for item in _output_items(spec, line)):
        raise SpecError(
            f"this {spec.family} model shows its residual stream (it has no head behind the last norm), so the stream cannot "
            "be rotated. Use --residual permutation or --residual identity."
        )
    out, untied = _untie(config, tensors)
    spec = spec_for(untied)
    notes = () if untied.get("tie_word_embeddings", True) == config.get("tie_word_embeddings", True) else (_UNTIED,)
    readers: dict[str, tuple[str, ...]] = {}
    for norm, modules in gauges.norms.items():
        for name in _ending(out, (norm,), "weight"):
            stem = name.removesuffix(f"{norm}.weight")
            found = tuple(w for module in modules if (w := f"{stem}{module}.weight") in out)
            if found:
                readers[name] = found
    taken = {reader for found in readers.values() for reader in found}
    for name in _ending(out, (gauges.last,), "weight"):
        if name not in readers:
            readers[name] = tuple(w for w in out if w not in taken and _reads(spec, w))
    for gain, weights in readers.items():
        _fold(spec, out, gain, weights)
    return Folded(out, untied, notes)


_UNTIED = (
    "the output head is a tensor of its own now: the last norm's gain was folded into it (tie_word_embeddings: false)"
)


def _output_items(spec: PermutationSpec, output: str) -> tuple[TensorAxis, ...]:
    from merge.symmetry.spec import parse

    return parse(spec.outputs[output])


def _ending(tensors: Mapping[str, Tensor], modules: tuple[str, ...], kind: str) -> Iterator[str]:
    """Yield the weights, or biases, of the modules whose path ends so."""
    for name in list(tensors):
        if any(f".{name}".endswith(f".{module}.{kind}") for module in modules):
            yield name


def _inside(spec: PermutationSpec, name: str, tensor: Tensor, kind: str, role: str) -> Int[Tensor, " units"]:
    """Return the places of a bias that lie inside heads on an axis of this kind, in this role."""
    axis = spec.axes(name)[0]
    leaves = axis.parts or (axis,)
    found = [
        places(view).reshape(-1)
        for leaf, view in zip(leaves, spec.views(name, tuple(tensor.shape))[0], strict=True)
        if leaf.roles[-1:] == (role,) and _kind(view.names[-1]) == kind
    ]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def _kind(axis: str) -> str:
    return axis.rstrip("0123456789").rsplit("_", 1)[-1]


def _zeroed(bias: Tensor, where: Int[Tensor, " units"]) -> Tensor:
    out = bias.clone()
    out[where] = 0
    return out


def _fold_value(spec: PermutationSpec, out: Tensors, value: str, reader: str) -> None:
    """Move the value bias behind the module that reads what the heads gather."""
    weight, bias = f"{reader}.weight", f"{reader}.bias"
    where = _inside(spec, value, out[value], "v", "out")
    if weight not in out or bias not in out or len(where) == 0:
        return
    item = next(k for k, axis in enumerate(spec.axes(weight)) if axis.roles[-1:] == ("in",))
    columns = out[weight].double().movedim(item, 1)
    folded = out[bias].double() + columns @ out[value].double()[where]
    out[bias] = folded.to(out[bias].dtype)
    out[value] = _zeroed(out[value], where)


def _stream(spec: PermutationSpec, name: str) -> int:
    """Return the axis of a tensor along which its module writes."""
    return next(k for k, axis in enumerate(spec.axes(name)) if len(axis.names) == 1 and axis.roles[0] != "in")


def _centred(tensor: Tensor, dim: int) -> Tensor:
    exact = tensor.double()
    return (exact - exact.mean(dim, keepdim=True)).to(tensor.dtype)


def _reads(spec: PermutationSpec, name: str) -> bool:
    return any(axis.names == ("residual",) and axis.roles == ("in",) for axis in spec.axes(name))


def _untie(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors with a copy of each tied one under its own name, and the config that says so."""
    ties = structure_of(config).ties
    untied = {**config, "tie_word_embeddings": False} if ties else dict(config)
    still = structure_of(untied).ties
    out = dict(tensors)
    for name, source in ties.items():
        if name not in still and name not in out:
            out[name] = tensors[source].clone()
    return out, untied


def _fold(spec: PermutationSpec, out: Tensors, gain: str, weights: tuple[str, ...]) -> None:
    """Give a norm's gain to the weights that read it."""
    g = out[gain].double()
    if bool((g == 0).any()):
        raise SpecError(f"{gain} has a gain of zero: its norm cannot be folded. Use --residual permutation.")
    bias = f"{gain.removesuffix('.weight')}.bias"
    if bias in out:
        out[bias] = (out[bias].double() / g).to(out[bias].dtype)
    for weight in weights:
        dim = next(
            k for k, axis in enumerate(spec.axes(weight)) if axis.names == ("residual",) and axis.roles == ("in",)
        )
        shape = [-1 if k == dim else 1 for k in range(out[weight].ndim)]
        out[weight] = (out[weight].double() * g.reshape(shape)).to(out[weight].dtype)
    out[gain] = torch.ones_like(out[gain])
