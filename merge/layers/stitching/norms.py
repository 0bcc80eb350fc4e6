"""The norm that wrote a state of a model, where norms come last: its names and its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from merge.checkpoints.checkpoint import Checkpoint
from merge.layers.activations import EMBEDDING_NORM, LiveLayers, normed_states
from merge.layers.config import group_of
from merge.layers.parts import parts_of
from merge.layers.repair.ridge import NormalEquations
from merge.layers.stacks import before_layers, layer_of
from merge.layers.stitching.maps import Norm, best_rotation

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch

# A gain below this share of the mean gain hardly passes its unit on, and is not divided by.
LEAST_GAIN = 1e-3
# Tensors between the norm of the embeddings and the first layer: where one is there, no norm writes state 0.
BETWEEN = ("embeddings_project.", "embed_proj.", "embedding_hidden_mapping_in.")


def norm_names(model: Checkpoint, state: int) -> tuple[str, str] | None:
    """Return the canonical names of gain and bias of the norm that writes a state; None where none does."""
    parts, family = parts_of(model.config), model.model_type
    if parts.norm is None:
        return None
    tensors = model.encoder.tensors
    if state == 0:
        early = [name for name in tensors if layer_of(name, family) is None and before_layers(name, family)]
        if any(part in name for name in early for part in BETWEEN):
            return None
        ends = (f"{EMBEDDING_NORM}.weight", f"{EMBEDDING_NORM}.bias")
        names = [next((name for name in early if name.endswith(end)), None) for end in ends]
    else:
        layer = group_of(state - 1, model.config) if family == "albert" else state - 1
        split = {name: part for name in tensors if (part := layer_of(name, family)) is not None and part[1] == layer}
        names = [
            next((name for name, part in split.items() if part[2] == f".{parts.norm}.{end}"), None)
            for end in ("weight", "bias")
        ]
    return (names[0], names[1]) if names[0] is not None and names[1] is not None else None


def norm_of_state(model: Checkpoint, state: int, live: LiveLayers) -> Norm | None:
    """Return the norm that writes a state of a model, in float32; None where none does.

    Args:
        live: the model, whose modules state the epsilon.
    """
    names = norm_names(model, state)
    if names is None:
        return None
    gain, bias = (model.encoder.tensor(name).float() for name in names)
    return Norm(gain, bias, _layer_epsilon(live))


def states_before_norms(live: LiveLayers, batch: Batch, states: Iterable[int]) -> dict[int, torch.Tensor]:
    """Return the rows of states of one batch, each before gain and bias of the norm that writes it."""
    norm = parts_of(live.model.config.to_dict()).norm
    assert norm is not None
    return normed_states(live, batch, states, norm)


def divisible_state(live: LiveLayers, batch: Batch, state: int, norm: Norm) -> torch.Tensor:
    """Return the rows of a state with gains that can be divided by, so that no unit is hidden by a gain of 0.

    Equal to the state but for such units, which the model's next layer hardly reads and the norm's statistics need.

    Args:
        norm: that writes the state.
    """
    return states_before_norms(live, batch, [state])[state] * divisor(norm.gain) + norm.bias


def rotation_before_norm(e: NormalEquations, norm: Norm) -> torch.Tensor:
    """Return the best rotation to the state that a norm writes, taken back to what it reads; from sums of the latter.

    Returns:
        W and below it c of a map to the state before gain and bias.
    """
    gain, bias = divisor(norm.gain).double(), norm.bias.double()
    after = NormalEquations(len(e.xx) - 1, e.xy.shape[1])
    after.xx, after.rows = e.xx, e.rows
    after.xy, after.y = e.xy * gain + torch.outer(e.xx[:, -1], bias), e.y * gain + e.rows * bias
    start = best_rotation(after)
    start[-1] -= bias
    return start / gain


def _layer_epsilon(live: LiveLayers) -> float:
    """Return the epsilon of the norms inside layers; 0 in a model without layers."""
    norms = (
        module
        for name in live.names
        for module in live.model.base_model.get_submodule(f"{live.path}.{name}").modules()
        if "norm" in type(module).__name__.lower()
    )
    for module in norms:
        for key in ("eps", "variance_epsilon"):  # the second as DeBERTa names it
            value = getattr(module, key, None)
            if isinstance(value, float) and math.isfinite(value):
                return value
    return 0.0


def divisor(gain: torch.Tensor) -> torch.Tensor:
    """Return a gain that can be divided by: no unit nearer to 0 than a thousandth of the mean."""
    least = LEAST_GAIN * gain.abs().mean()
    return torch.where(gain.abs() < least, least.copysign(gain), gain)
