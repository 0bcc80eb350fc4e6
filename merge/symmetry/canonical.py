"""Rewrite a model's weights without changing its function, so that two models are compared by what their outputs show.

Two rewrites, each driven by what the family's table says it may do (`merge.symmetry.rewrites`):

`canonical_weights` sets to zero what no output shows (the bias of the keys, the mean of what is written before a
LayerNorm) and moves the bias of the values to where it acts.

`fold_norms` gives the gains of a pre-LN model's norms to the weights that read them. A rotation of the residual stream
mixes its units, and diag(g) commutes with a rotation only where all entries of g are equal: so the gains have to be one
before the stream is rotated.
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
from merge.machine import in_parallel
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import unit_positions
from merge.symmetry.rewrites import NO_REWRITES, Rewrites
from merge.symmetry.spec import PermutationSpec, parse

Tensors = dict[str, Tensor]

# Entries that are held in float64 at a time.
PIECE = 1 << 17

UNTIED_NOTE = (
    "the output head is a tensor of its own now: the last norm's gain was folded into it (tie_word_embeddings: false)"
)


@dataclass(frozen=True)
class Folded:
    """A model whose norms have gain one.

    Attributes:
        tensors: by canonical name; an output head that was tied to the word embeddings is now a separate tensor.
        config: the model's config, with `tie_word_embeddings: false` where that happened.
        notes: sentences for the user.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def canonical_weights(spec: PermutationSpec, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the weights of the same function with everything zero that the outputs cannot show.

    b_K = 0;  b_O = b_O + W_O b_V, b_V = 0;  W_O, b_O, W_2, b_2 and embedding tables minus their mean over the units of
    the residual stream. Computed in float64, returned in the dtypes given; unchanged tensors are the same objects.
    Where the spec claims no rewrites, nothing changes.
    """
    rewrites, out = spec.rewrites, dict(tensors)
    if rewrites == NO_REWRITES:
        return out
    for name in _names_ending(out, rewrites.keys, "bias"):
        out[name] = _zeroed(out[name], _positions_inside_heads(spec, name, out[name], "qk", "in"))
    for value, reader in rewrites.values.items():
        for name in _names_ending(out, (value,), "bias"):
            stem = name.removesuffix(f"{value}.bias")
            _fold_value_bias(spec, out, name, f"{stem}{reader}")
    # A table that a tied decoder reads shows its mean: it shifts the logits of a token.
    tied = set(structure_of(config).ties.values())
    tables = [name for name in _names_ending(out, rewrites.tables, "weight") if not any(map(name.endswith, tied))]
    written = [*_names_ending(out, rewrites.writers, "weight"), *_names_ending(out, rewrites.writers, "bias")]
    names = [*written, *tables]
    return out | dict(
        zip(names, in_parallel(lambda name: _centred(out[name], _stream_dim(spec, name)), names), strict=True)
    )


def fold_norms(spec: PermutationSpec, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Folded:
    """Return the same function with the gain of every norm one: W' = W diag(g), b' = b / g, g' = 1.

    A tied output head reads the last norm, the word embeddings do not: the head becomes a tensor of its own, and the
    config says `tie_word_embeddings: false`. Computed in float64, returned in the dtypes given.

    Raises:
        SpecError: the family's norms cannot be folded, the model has no head behind the last norm, or a gain is zero.
    Source: the pre-LN invariance of Zhang et al. 2025 and Theus et al. 2025, with LayerNorm left as it is.
    """
    rewrites = spec.rewrites
    if rewrites.last is None:
        raise SpecError(
            f"the residual stream of {spec.family} cannot be rotated: the gains of its norms act on the stream itself, or it "
            "is not known which weights read them. Use --residual permutation or --residual identity."
        )
    if any(axis.names == ("residual",) for line in spec.outputs.values() for axis in parse(line)):
        raise SpecError(
            f"this {spec.family} model shows its residual stream (it has no head behind the last norm), so the stream cannot "
            "be rotated. Use --residual permutation or --residual identity."
        )
    out, untied = _untie(config, tensors)
    spec = spec_for(untied)
    notes = () if untied.get("tie_word_embeddings", True) == config.get("tie_word_embeddings", True) else (UNTIED_NOTE,)
    readers = _readers_of_norms(rewrites, out)
    inside_layers = {weight for weights in readers.values() for weight in weights}
    for name in _names_ending(out, (rewrites.last,), "weight"):
        if name not in readers:
            # Everything else that reads the stream reads it after the last norm: the task head.
            readers[name] = tuple(w for w in out if w not in inside_layers and _reads_stream(spec, w))
    for gain, weights in readers.items():
        _fold_gain(spec, out, gain, weights)
    return Folded(out, untied, notes)


def _readers_of_norms(rewrites: Rewrites, tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Return gain of a norm inside a layer -> the weights beside it that read the norm."""
    readers: dict[str, tuple[str, ...]] = {}
    for norm, modules in rewrites.norms.items():
        for name in _names_ending(tensors, (norm,), "weight"):
            stem = name.removesuffix(f"{norm}.weight")
            weights = tuple(weight for module in modules if (weight := f"{stem}{module}.weight") in tensors)
            if weights:
                readers[name] = weights
    return readers


def _names_ending(tensors: Mapping[str, Tensor], modules: tuple[str, ...], kind: str) -> Iterator[str]:
    """Yield the names of the weights, or of the biases, of the modules whose path ends in one of these."""
    for name in list(tensors):
        if any(f".{name}".endswith(f".{module}.{kind}") for module in modules):
            yield name


def _positions_inside_heads(
    spec: PermutationSpec, name: str, bias: Tensor, kind: str, role: str
) -> Int[Tensor, " units"]:
    """Return the positions along a bias of the units inside heads on an axis of this kind (`qk`, `v`) in this role."""
    axis = spec.axes(name)[0]
    leaves = axis.parts or (axis,)
    positions = [
        unit_positions(view).reshape(-1)
        for leaf, view in zip(leaves, spec.views(name, tuple(bias.shape))[0], strict=True)
        if leaf.roles[-1:] == (role,) and _kind(view.names[-1]) == kind
    ]
    return torch.cat(positions) if positions else torch.empty(0, dtype=torch.int64)


def _kind(axis: str) -> str:
    """Return an axis without the layer's number and the encoder it is of: `qk` for `text_qk3`."""
    return axis.rstrip("0123456789").rsplit("_", 1)[-1]


def _zeroed(bias: Tensor, positions: Int[Tensor, " units"]) -> Tensor:
    out = bias.clone()
    out[positions] = 0
    return out


def _fold_value_bias(spec: PermutationSpec, out: Tensors, value: str, reader: str) -> None:
    """Move the bias of the values into the bias of the module that reads what the heads gather."""
    weight, bias = f"{reader}.weight", f"{reader}.bias"
    positions = _positions_inside_heads(spec, value, out[value], "v", "out")
    if weight not in out or bias not in out or len(positions) == 0:
        return
    dim = next(k for k, axis in enumerate(spec.axes(weight)) if axis.roles[-1:] == ("in",))
    columns = out[weight].double().movedim(dim, 1)
    folded = out[bias].double() + columns @ out[value].double()[positions]
    out[bias] = folded.to(out[bias].dtype)
    out[value] = _zeroed(out[value], positions)


def _stream_dim(spec: PermutationSpec, name: str) -> int:
    """Return the dimension of a tensor along which its module writes the residual stream."""
    return next(k for k, axis in enumerate(spec.axes(name)) if len(axis.names) == 1 and axis.roles[0] != "in")


def _centred(tensor: Tensor, dim: int) -> Tensor:
    # A few rows at a time: what is in float64 then fits into a cache.
    out = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    across = tensor.double().mean(0, keepdim=True) if dim == 0 and tensor.ndim > 1 else None
    rows = max(1, PIECE * len(tensor) // max(tensor.numel(), 1)) if tensor.ndim > 1 else len(tensor)
    for piece, filled in zip(tensor.split(rows), out.split(rows), strict=True):
        exact = piece.double()
        filled.copy_(exact.sub_(exact.mean(dim, keepdim=True) if across is None else across))
    return out


def _stream_read_dims(spec: PermutationSpec, name: str) -> list[int]:
    """Return the dimensions of a tensor along which it reads the residual stream."""
    return [k for k, axis in enumerate(spec.axes(name)) if axis.names == ("residual",) and axis.roles == ("in",)]


def _reads_stream(spec: PermutationSpec, name: str) -> bool:
    return bool(_stream_read_dims(spec, name))


def _untie(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors with a copy of each tied one under its own name, and the config that unties them."""
    ties = structure_of(config).ties
    untied = {**config, "tie_word_embeddings": False} if ties else dict(config)
    remaining = structure_of(untied).ties
    out = dict(tensors)
    for name, source in ties.items():
        if name not in remaining and name not in out:
            out[name] = tensors[source].clone()
    return out, untied


def _fold_gain(spec: PermutationSpec, out: Tensors, gain: str, weights: tuple[str, ...]) -> None:
    """Multiply the gain of a norm into the weights that read it, and set it to one."""
    g = out[gain].double()
    if bool((g == 0).any()):
        raise SpecError(f"{gain} has a gain of zero: its norm cannot be folded. Use --residual permutation.")
    bias = f"{gain.removesuffix('.weight')}.bias"
    if bias in out:
        out[bias] = (out[bias].double() / g).to(out[bias].dtype)
    for weight in weights:
        dim = _stream_read_dims(spec, weight)[0]
        shape = [-1 if k == dim else 1 for k in range(out[weight].ndim)]
        out[weight] = (out[weight].double() * g.reshape(shape)).to(out[weight].dtype)
    out[gain] = torch.ones_like(out[gain])
