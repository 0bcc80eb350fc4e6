"""Affine replacement: several layers replaced by one fitted map, in a layer that any BERT can hold.

Where norms come last, the map becomes a layer of its own. Its attention writes nothing, so that its first norm gives
z = LN(x). Its feed-forward part computes the map without bending it, as

    act(t) - act(-t) = t      for GELU, its tanh form, ReLU and SiLU,

with t = (W - 1) z: rows W - 1 and 1 - W in the input projection, columns 1 and -1 in the output projection. The stream adds
z again, and the last norm is that of the last replaced layer, so that W z + b is fitted to its output before gain and bias.
That first norm would forget the length of what the layer reads. So where the layer before wrote x = gain n + bias, its norm
gets gain 1 and bias 0: the layer reads n, of which z = n.

Where norms come first, no layer is needed: the output y of the feed-forward part before the block becomes T y + c, which is
folded into its projection (Shopkhoev et al. 2025, arXiv:2505.02819, ReplaceMe, with a constant and a pull to T = 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merge.errors import UsageError
from merge.layers.activations import LiveLayers, norm_epsilon, normed_state, split_batches, states_of
from merge.layers.assembly import Assembly
from merge.layers.parts import STREAM_WIDTHS
from merge.layers.repair.projection import Projection, read_projection
from merge.layers.repair.ridge import Fitted, NormalEquations, check_rows, fit
from merge.progress import track

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch

RIDGES = (1e-4, 1e-2, 1e-1, 1.0)
ACTIVATION_KEYS = ("hidden_act", "activation", "activation_function", "ff_activation")


def check_affine(assembly: Assembly) -> None:
    """Stop where a layer of the family cannot hold an affine map.

    Raises:
        UsageError: the activation bends it, the feed-forward part is too narrow, or layers share weights.
    """
    parts, family = assembly.parts, str(assembly.config["model_type"])
    if parts.sandwich:
        raise UsageError(f"{family} norms the output of its feed-forward part, so no affine map can be folded into it.")
    if parts.norm is not None and parts.up is not None:
        check_linear_feed_forward(assembly)


def check_linear_feed_forward(assembly: Assembly) -> None:
    """Stop where a feed-forward part cannot compute a linear map by act(t) - act(-t) = t.

    Raises:
        UsageError: the activation bends it, or the part is narrower than twice the stream.
    """
    from transformers.activations import ACT2FN

    parts, family = assembly.parts, str(assembly.config["model_type"])
    settings = assembly.owner.structure.settings
    name = next((str(settings[key]) for key in ACTIVATION_KEYS if settings.get(key)), "")
    grid = torch.linspace(-6, 6, 97, dtype=torch.float64)
    act = ACT2FN[name]
    if not torch.allclose(act(grid) - act(-grid), grid, atol=1e-6):
        raise UsageError(f"{family} with activation {name!r} cannot hold an affine map: act(t) - act(-t) is not t.")
    width = next(int(settings[key]) for key in STREAM_WIDTHS if settings.get(key))
    inner = [
        math.prod(shape) // width
        for output, ((model, source), *_) in assembly.tensors.sources.items()
        if output.endswith(f".{parts.up}.weight")
        and len(shape := assembly.models[model].tensors[source].shape) == 2
        and math.prod(shape) < 2 * width * width
    ]
    if inner:
        raise UsageError(
            f"an affine layer needs a feed-forward part of twice the hidden size, {2 * width}; this model has {inner[0]}."
        )


def affine_layer(
    assembly: Assembly,
    index: int,
    teacher: LiveLayers,
    batches: Sequence[Batch],
    ridges: Sequence[float] = RIDGES,
    reads: LiveLayers | None = None,
) -> tuple[dict[str, Tensor], Fitted]:
    """Return the tensors of a fitted layer by their output names, and the figures of the fit.

    Args:
        index: of the output layer, which the plan makes as affine.
        teacher: the model that the map is fitted to.
        reads: the model whose state it reads; the teacher when None.
    Raises:
        CalibrationError: there are fewer tokens than the map has columns.
    """
    making = assembly.plan.making(index)
    assert making is not None
    assert making.states is not None
    (start, end), parts = making.states, assembly.parts
    assert parts.norm is not None
    if not end:
        raise UsageError(f"output layer {index}: a fitted layer goes to a state that a layer wrote, not to state 0.")
    assert parts.mix_norm is not None
    before = teacher.module(0, parts.mix_norm)
    names, width, epsilon = Projection.of(assembly, index), len(before.weight), norm_epsilon(before)
    below = _norm_below(assembly, index)
    fitting, held = (NormalEquations(width, width) for _ in range(2))
    for batch, is_held in track(list(split_batches(tuple(batches))), "fitting a layer"):
        if below:
            read = normed_state(reads or teacher, batch, start, parts.norm)
        else:
            read = states_of(reads or teacher, batch, [start])[start]
        z = torch.nn.functional.layer_norm(read, (width,), eps=epsilon)
        due = normed_state(teacher, batch, end, parts.norm)
        (held if is_held and len(ridges) > 1 else fitting).add(z, due)
    check_rows(f"affine layer {index}", fitting.rows + held.rows, width)
    identity = torch.cat([torch.eye(width, dtype=torch.float64), torch.zeros(1, width, dtype=torch.float64)])
    fitted = fit(fitting, held, identity, ridges)
    bare = {name: torch.full((width,), float(name.endswith("weight"))) for name in below}
    return {**as_layer(assembly, names, fitted.weights.float()), **bare}, fitted


def _norm_below(assembly: Assembly, index: int) -> tuple[str, ...]:
    """Return gain and bias of the norm that an affine layer reads, where it is that of a copied layer; else nothing."""
    plan, making = assembly.plan, assembly.plan.making(index)
    assert making is not None
    assert making.states is not None
    model = plan.layers[index][0][0] if making.reads is None else making.reads
    if index == 0 or plan.making(index - 1) is not None or plan.layers[index - 1] != ((model, making.states[0] - 1),):
        return ()
    path = f"{Projection.of(assembly, index - 1).layer}{assembly.parts.norm}"
    return f"{path}.weight", f"{path}.bias"


def as_layer(assembly: Assembly, names: Projection, weights: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a layer that computes LN(x) W + b before its last norm.

    Args:
        weights: W and below it b, shape (units + 1, units).
    """
    parts, width = assembly.parts, weights.shape[1]
    layer = {name: assembly.tensor(name) for name in assembly.tensors.sources if name.startswith(names.layer)}
    up, down = f"{names.layer}{parts.up}", f"{names.layer}{parts.down}"
    inner = layer[f"{up}.weight"].shape[0]
    change = weights[:-1].T - torch.eye(width)
    up_weight, down_weight = torch.zeros(inner, width), torch.zeros(width, inner)
    up_weight[:width], up_weight[width : 2 * width] = change, -change
    down_weight[:, :width], down_weight[:, width : 2 * width] = torch.eye(width), -torch.eye(width)
    tensors = {f"{up}.weight": up_weight, f"{down}.weight": down_weight, f"{down}.bias": weights[-1]}
    tensors[f"{up}.bias"] = torch.zeros(inner)
    for name, tensor in layer.items():
        below = name.removeprefix(names.layer)
        if below == parts.mix or below.startswith(f"{parts.mix}."):
            tensors[name] = torch.zeros_like(tensor, dtype=torch.float32)
        elif below.startswith(f"{parts.mix_norm}."):
            tensors[name] = torch.full_like(tensor, float(below.endswith("weight")), dtype=torch.float32)
    return tensors


def folded_map(
    assembly: Assembly,
    index: int,
    student: LiveLayers,
    teacher: LiveLayers,
    end: int,
    batches: Sequence[Batch],
    ridges: Sequence[float] = RIDGES,
) -> tuple[dict[str, Tensor], Fitted]:
    """Return the output projection of an output layer with a fitted map folded in, and the figures of the fit.

    Args:
        index: of the output layer before the replaced block.
        end: the state of the teacher that the layer is fitted to.
    """
    names = Projection.of(assembly, index)
    weight = assembly.tensor(names.weight).float()
    transposed = names.transposed(student, index)
    projection = weight if transposed else weight.T
    bias = assembly.tensor(names.bias).float() if names.bias else None
    width = projection.shape[1]
    fitting, held = (NormalEquations(width, width, bias is not None) for _ in range(2))
    for batch, is_held in track(list(split_batches(tuple(batches))), "fitting a map"):
        _, y, rest = read_projection(student, index, assembly, batch)
        target = states_of(teacher, batch, [end])[end] - rest
        (held if is_held and len(ridges) > 1 else fitting).add(y, target)
    check_rows(f"the map after output layer {index}", fitting.rows + held.rows, width)
    start = torch.eye(width, dtype=torch.float64)
    if bias is not None:
        start = torch.cat([start, torch.zeros(1, width, dtype=torch.float64)])
    fitted = fit(fitting, held, start, ridges)
    turn = fitted.weights[:width].float()
    solved = projection @ turn
    tensors = {names.weight: (solved if transposed else solved.T).contiguous()}
    if names.bias is not None and bias is not None:
        tensors[names.bias] = bias @ turn + fitted.weights[-1].float()
    return tensors, fitted
