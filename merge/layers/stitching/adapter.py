"""A map between two models as a standard layer of the output: its tensors, from the numbers of the map.

Where norms come last, every layer ends in one. The layer computes

    y' = norm_B((x W + c - beta_B) / gamma_B)          with gamma_B, beta_B of the norm that wrote B's state,

which is x W + c put back where states of B are: nothing changes for a state that is there, as a permuted or rotated copy's is.
What the layer reads passes a norm first, which would forget the length of x; so the norm below that wrote x = gamma_A n + beta_A
gets gain 1 and bias 0, and W takes gamma_A and beta_A over: the layer reads n, which a norm does not change.

Where norms come first, a layer adds to the stream what it computes of the normed state f:

    y' = x + f M + c

so that maps of this form are fitted. Its attention writes nothing; the feed-forward part computes t W by act(t) - act(-t) = t.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merge.checkpoints.hooks import watching
from merge.errors import UsageError
from merge.layers.activations import EnoughError, LiveLayers, live_layers, split_batches, states_of
from merge.layers.assembly import Assembly
from merge.layers.config import stored_indices
from merge.layers.parts import zeroed
from merge.layers.plans.making import SUBLAYERS
from merge.layers.repair.affine import as_layer
from merge.layers.repair.projection import Projection
from merge.layers.repair.ridge import NormalEquations
from merge.layers.stitching.maps import Norm, StateMap, fit_map
from merge.layers.stitching.norms import divisible_state, divisor, norm_names, norm_of_state, rotation_before_norm
from merge.layers.stitching.pairs import Reader, Rows, state_of
from merge.progress import track

if TYPE_CHECKING:
    from collections.abc import Iterable

    from merge.checkpoints.inputs import Batch
    from merge.layers.stitching.kinds import StitchSettings


@dataclass(frozen=True)
class NormedLayer:
    """A layer that holds a map, in a family whose norms come last.

    Attributes:
        index: of the output layer.
        after: the norm that wrote the state of B, which the layer ends in.
        below: names and values of the norm that wrote the state of A, which is undone; None where no norm wrote it: the map
            then reads LN(x).
        before_norm: whether the map is fitted to what the norm of B reads (affine+norm).
    """

    assembly: Assembly
    index: int
    after: Norm
    below: tuple[tuple[str, str], Norm] | None
    before_norm: bool

    @property
    def readers(self) -> tuple[Reader, Reader]:
        """What reads the states of A and B that the map is fitted on: before gains that hide a unit, where a norm wrote them."""
        below = partial(divisible_state, norm=self.below[1]) if self.below else state_of
        return below, partial(divisible_state, norm=self.after)

    def features(self, x: Tensor) -> Tensor:
        """Return what the map is fitted on."""
        return x if self.below else torch.nn.functional.layer_norm(x, x.shape[-1:], eps=self.after.epsilon)

    def targets(self, y: Tensor) -> Tensor:
        """Return what the map is fitted to."""
        return (y - self.after.bias) / divisor(self.after.gain) if self.before_norm else y

    def tensors(self, weight: Tensor, constant: Tensor) -> dict[str, Tensor]:
        """Return output name -> tensor for a map x W + c; gradients reach W and c."""
        if not self.before_norm:
            gain = divisor(self.after.gain).to(weight.dtype)
            weight, constant = weight / gain, (constant - self.after.bias.to(weight.dtype)) / gain
        made: dict[str, Tensor] = {}
        if self.below is not None:
            names, norm = self.below
            gain, bias = divisor(norm.gain).to(weight.dtype), norm.bias.to(weight.dtype)
            constant, weight = constant + bias @ weight, gain[:, None] * weight
            made |= {names[0]: torch.ones_like(norm.gain), names[1]: torch.zeros_like(norm.bias)}
        projection = own_projection(self.assembly, self.index)
        made |= as_layer(self.assembly, projection, torch.cat([weight, constant[None]]).float())
        norm_path = f"{projection.layer}{self.assembly.parts.norm}"
        return made | {f"{norm_path}.weight": self.after.gain, f"{norm_path}.bias": self.after.bias}


def normed_layer(
    assembly: Assembly, settings: StitchSettings, index: int, live: tuple[LiveLayers, LiveLayers]
) -> NormedLayer:
    """Return the layer of a stitch in a family whose norms come last.

    Raises:
        UsageError: no norm wrote the state of B.
    """
    bottom, top = assembly.models
    after = norm_of_state(top, settings.at[1], live[1])
    if after is None:
        raise UsageError(
            f"--at {settings.words}: every layer of {top.model_type} ends in a norm, but none wrote what layer 0 of "
            f"{top.source} reads. Cut it at 1 or above."
        )
    names, norm = norm_names(bottom, settings.at[0]), norm_of_state(bottom, settings.at[0], live[0])
    below = None
    if names is not None and norm is not None:
        if index:
            path = f"{own_projection(assembly, index - 1).layer}{assembly.parts.norm}"
            names = f"{path}.weight", f"{path}.bias"
        below = names, norm
    return NormedLayer(assembly, index, after, below, settings.kind == "affine+norm")


def own_projection(assembly: Assembly, index: int) -> Projection:
    """Return the names of an output layer, which no other layer shares.

    Raises:
        UsageError: other layers share its weights (ALBERT).
    """
    plan, configs = assembly.plan, [model.config for model in assembly.models]
    total, groups = len(plan.layers), len(stored_indices(configs, plan.layers, plan.makings))
    stored = [int(layer / (total / groups)) for layer in range(total)]  # as ALBERT divides layers among groups
    if stored.count(stored[index]) > 1:
        raise UsageError(
            f"layer {index} of the stitched model shares its weights with others, so it cannot hold a map."
        )
    return Projection.stored_as(assembly, stored[index])


@dataclass(frozen=True)
class AddedLayer:
    """A layer that holds a map, in a family whose norms come first.

    Attributes:
        index: of the output layer.
        student: the output with a layer there that writes nothing yet.
    """

    assembly: Assembly
    index: int
    student: LiveLayers

    def tensors(self, weight: Tensor, constant: Tensor) -> dict[str, Tensor]:
        """Return output name -> tensor for a map x + f W + c; gradients reach W and c."""
        parts, names = self.assembly.parts, Projection.of(self.assembly, self.index)
        assert parts.up is not None
        up = f"{names.layer}{parts.up}"
        turned = names.transposed(self.student, self.index)
        width = len(weight)
        shape = tuple(self.assembly.tensor(f"{up}.weight").shape)
        rows = torch.zeros(shape[::-1] if turned else shape)
        columns = torch.zeros(width, rows.shape[0])
        rows[:width], rows[width : 2 * width] = weight.T.float(), -weight.T.float()
        columns[:, :width], columns[:, width : 2 * width] = torch.eye(width), -torch.eye(width)
        made = silent_tensors(self.assembly, names.layer)
        made |= {f"{up}.weight": rows.T if turned else rows, names.weight: columns.T if turned else columns}
        made |= {f"{up}.bias": torch.zeros(rows.shape[0]), str(names.bias): constant.float()}
        return {name: tensor.contiguous() for name, tensor in made.items()}

    def sums(self, top: LiveLayers, state: int, batches: Sequence[Batch]) -> tuple[NormalEquations, NormalEquations]:
        """Return the sums of a fit of what is added, of the learned and the held-out texts."""
        width = int(self.assembly.tensor(Projection.of(self.assembly, self.index).weight).shape[0])
        fitting: list[NormalEquations] = []
        for batch, is_held in track(list(split_batches(tuple(batches))), "reading states"):
            f, x = self._read(batch)
            target = states_of(top, batch, [state])[state]
            width = target.shape[1]
            fitting = fitting or [NormalEquations(width, width) for _ in range(2)]
            fitting[is_held].add(f.double(), target.double() - x.double())
        return fitting[0], fitting[1]

    def _read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what the feed-forward part of the layer reads, and the stream."""
        layer = f"{self.student.path}.{self.student.names[self.index]}"
        sites = [f"{layer}:in", f"{layer}.{self.assembly.parts.up}:in"]
        seen: dict[str, Tensor] = {}

        def see(site: str, activation: Tensor) -> None:
            seen[site] = self.student.rows(activation, batch)
            if site == sites[1]:
                raise EnoughError

        with torch.inference_mode(), suppress(EnoughError), watching(self.student.model.base_model, sites, see):
            self.student.model(**batch)
        return seen[sites[1]], seen[sites[0]]


def silent_tensors(assembly: Assembly, layer: str) -> dict[str, Tensor]:
    """Return the tensors of a layer that write into the stream, as zeros."""
    return {
        name: torch.zeros_like(assembly.tensor(name), dtype=torch.float32)
        for name in assembly.tensors.sources
        if name.startswith(layer) and zeroed(name.removeprefix(layer), assembly.parts, SUBLAYERS)
    }


def added_layer(assembly: Assembly, index: int) -> AddedLayer:
    """Return the layer of a stitch in a family whose norms come first."""
    names = Projection.of(assembly, index)
    silent = assembly.with_computed(silent_tensors(assembly, names.layer))
    return AddedLayer(silent, index, live_layers(silent.build()))


def fit_normed(layer: NormedLayer, rows: Iterable[Rows], settings: StitchSettings, ridges: Sequence[float]) -> StateMap:
    """Return the map of a layer whose norm comes last, fitted on pairs of states."""
    width = len(layer.after.gain)
    sums = [NormalEquations(width, width) for _ in range(2)]
    for x, y, held in rows:
        features = layer.features(x.float()).double()
        sums[held and len(ridges) > 1].add(features, layer.targets(y.float()).double())
    whole = sums[0] + sums[1]
    start = rotation_before_norm(whole, layer.after) if layer.before_norm and whole.rows else None
    return fit_map(settings.kind, sums[0], sums[1], ridges, settings.rank, start)


def fit_added(
    layer: AddedLayer, top: LiveLayers, batches: Sequence[Batch], settings: StitchSettings, ridges: Sequence[float]
) -> StateMap:
    """Return the map that a layer adds where norms come first, pulled towards nothing."""
    fitting, held = layer.sums(top, settings.at[1], batches)
    if len(ridges) < 2:
        fitting, held = fitting + held, NormalEquations(len(held.xx) - 1, held.xy.shape[1])
    nothing = torch.zeros(len(fitting.xx), fitting.xy.shape[1], dtype=torch.float64)
    fitted = fit_map(
        "affine" if settings.kind == "affine+norm" else settings.kind, fitting, held, ridges, settings.rank, nothing
    )
    return replace(fitted, kind=settings.kind)
