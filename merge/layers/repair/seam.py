"""Seam refit: the last kept layer below dropped layers learns in closed form what they would have written.

Only its feed-forward output projection changes. With x the rows that the projection reads, r the rest of the stream that is
added to its output, and h the state that the next kept layer was trained to read:

    norms last (post-LN)    W = argmin |x W + r - z|^2 + ridge d |W - W0|^2,  h = gamma z + beta,  and the norm takes gamma, beta
    norms first (pre-LN)    W = argmin |x W + r - h|^2 + ridge d |W - W0|^2

with gamma and beta of the layer that wrote h. Neither a layer nor a parameter is added. Seams are refitted from the first to
the last, each on the model with the seams below it refitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merge.checkpoints.transformers_model import set_weights
from merge.errors import UsageError
from merge.layers.activations import LiveLayers, normed_state, split_batches, states_of
from merge.layers.assembly import Assembly
from merge.layers.repair.projection import Projection, layer_tensors, read_projection
from merge.layers.repair.ridge import Fitted, NormalEquations, check_rows, fit
from merge.layers.repair.seams import Seam
from merge.progress import track

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch

RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Refit:
    """The refit of one seam."""

    seam: Seam
    fitted: Fitted


def refit_seam(
    assembly: Assembly,
    student: LiveLayers,
    teacher: LiveLayers,
    seam: Seam,
    batches: Sequence[Batch],
    ridges: Sequence[float] = RIDGES,
    whole: bool = True,
) -> tuple[dict[str, Tensor], Refit]:
    """Return the tensors of the layer below a seam by their output names, refitted, and the figures of the fit.

    Args:
        student: the edited model, with the seams below refitted.
        teacher: the model whose next layer is above the seam.
        batches: what both read; every fifth text is held out to choose the ridge where there are several.
        whole: whether the held-out text is fitted too in the end; without, it can still judge the result.
    Raises:
        UsageError: a layer of this family cannot be refitted.
        CalibrationError: there are fewer tokens than the stream has units.
    """
    names = Projection.of(assembly, seam.index)
    if assembly.parts.sandwich:
        raise UsageError(
            f"{assembly.config['model_type']} norms the output of its feed-forward part before it is added, so no projection "
            "can be refitted in closed form. Use --repair none with --heal-steps."
        )
    weight = assembly.tensor(names.weight).float()
    transposed = names.transposed(student, seam.index)
    start = weight if transposed else weight.T
    bias = assembly.tensor(names.bias).float() if names.bias else None
    fitting, held = (NormalEquations(start.shape[0], start.shape[1], bias is not None) for _ in range(2))
    for batch, is_held in track(list(split_batches(tuple(batches))), "refitting a seam"):
        if assembly.parts.norm is None:
            target = states_of(teacher, batch, [seam.state])[seam.state]
        else:
            target = normed_state(teacher, batch, seam.state, assembly.parts.norm)
        x, _, rest = read_projection(student, seam.index, assembly, batch)
        (held if is_held and (len(ridges) > 1 or not whole) else fitting).add(x, target - rest)
    rows = fitting.rows + held.rows
    check_rows(seam.words, rows, start.shape[1])
    start_with_constant = start.double() if bias is None else torch.cat([start.double(), bias[None].double()])
    fitted = fit(fitting, held, start_with_constant, ridges, whole)
    solved = fitted.weights if bias is None else fitted.weights[:-1]
    tensors = {names.weight: (solved if transposed else solved.T).float().contiguous()}
    if names.bias:
        tensors[names.bias] = fitted.weights[-1].float()
    if assembly.parts.norm is not None:
        source = layer_tensors(assembly, seam.model, seam.state - 1, assembly.parts.norm)
        tensors |= {f"{names.layer}{assembly.parts.norm}{end}": tensor for end, tensor in source.items()}
    written = {assembly.owner.written_name(name): tensor for name, tensor in tensors.items()}
    set_weights(student.model, written)
    return tensors, Refit(seam, fitted)


def refit_facts(refits: Sequence[Refit]) -> list[Mapping[str, Any]]:
    """Return the figures of refits for the manifest."""
    return [
        {
            "after_layer": refit.seam.index,
            "missing": list(refit.seam.missing),
            "ridge": refit.fitted.ridge,
            "tokens": refit.fitted.rows,
            "explained": refit.fitted.explained,
            "held_out_errors": {f"{ridge:g}": error for ridge, error in refit.fitted.held_out.items()},
        }
        for refit in refits
    ]
