"""Scores of heads and neurons: how much a model would lose with each of them, by weights alone or by running it on text.

The lowest scores are removed first. Each score says for which regime it is meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import UsageError, nearest
from merge.layers.pruning.gradients import LOSSES, gate_gradients
from merge.layers.pruning.predictions import divergence, predictions
from merge.layers.pruning.running import float_model, read_text_of
from merge.progress import track
from merge.text.source import TextSource

if TYPE_CHECKING:
    from torch import Tensor

    from merge.checkpoints.inputs import Batch
    from merge.layers.pruning.units import UnitLayer

# Score -> what it measures, and the regime that it is meant for.
SCORES = {
    "gate-gradient": "what a gate on a unit's output would change, to second order, from one backward pass a text; "
    "for removing several units without training afterwards",
    "lesion": "divergence from the full model with the unit alone at zero, a run a unit; exact for one unit, blind to "
    "units that stand in for one another; without training afterwards",
    "activation": "mean norm of what the unit adds to the residual stream; a cheap choice before training",
    "weight-norm": "norm of the weights that write the unit times those that read it; reads no text; train afterwards",
}
MOST_LESIONS = 4096  # units: each costs a pass over the text


@dataclass(frozen=True, eq=False)
class UnitScores:
    """The score of every unit.

    Attributes:
        name: of the score.
        layers: layer -> (units,), float64; lower is less important.
        text: the texts that it was measured on, in words; None for weights alone.
        loss: of the gate gradient.
        notes: for the user.
    """

    name: str
    layers: Mapping[int, Tensor]
    text: str | None
    loss: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def phrase(self) -> str:
        """What the score is and where it is from, for reports."""
        of_loss = f" ({LOSSES[self.loss]})" if self.loss else ""
        on = f", on {self.text}" if self.text else ""
        return f"{self.name}{of_loss}{on}: {SCORES[self.name]}"


def unit_scores(
    checkpoint: Checkpoint,
    layers: Sequence[UnitLayer],
    name: str,
    source: TextSource,
    loss: str = "own",
    label_column: str | None = None,
) -> UnitScores:
    """Return the score of every unit, in float32 on a sample of text.

    Args:
        loss: of the gate gradient; see `merge.layers.pruning.gradients`.
        label_column: with the loss `labels`, the column of class names.
    Raises:
        UsageError: the score is unknown, or the model has what it does not work with.
        CalibrationError: the text cannot be read, or there is no tokenizer.
    """
    if name not in SCORES:
        raise UsageError(f"unknown score {name!r}.{nearest(name, SCORES)}")
    if name == "weight-norm":
        return UnitScores(name, {layer.number: _weight_norms(checkpoint, layer) for layer in layers}, None)
    if name == "lesion" and (count := sum(layer.count for layer in layers)) > MOST_LESIONS:
        raise UsageError(
            f"lesion runs the text once a unit, and here are {count:,} (at most {MOST_LESIONS:,}). Use gate-gradient."
        )
    if name == "activation" and (without := [layer for layer in layers if layer.site is None]):
        raise UsageError(
            f"activation cannot be measured in {checkpoint.model_type}: no module reads the units of layer "
            f"{without[0].number} alone. Choose another --score."
        )
    if name == "gate-gradient":
        measured, phrase, notes = gate_gradients(checkpoint, layers, source, loss, label_column)
        return UnitScores(name, measured, phrase, loss, notes)
    batches, phrase, notes = read_text_of(checkpoint, source, name)
    model = float_model(checkpoint)
    measured = (_lesions if name == "lesion" else _activations)(checkpoint, model, layers, batches)
    return UnitScores(name, measured, phrase, None, notes)


def _weight_norms(checkpoint: Checkpoint, layer: UnitLayer) -> Tensor:
    """Return for every unit the norm of what writes it times the norm of what reads it; biases are left out."""
    import torch

    sides = []
    for places in (layer.writers, layer.readers):
        squares = torch.zeros(layer.count, dtype=torch.float64)
        for place in places:
            weights = place.weights(checkpoint.tensor(place.tensor).double())
            if weights.shape[-1] > 1:
                of_units = weights.square().sum((1, 2))
                squares += of_units.repeat_interleave(
                    layer.count // len(of_units)
                )  # of a key/value head for its queries
        sides.append(squares.sqrt())
    return sides[0] * sides[1]


def _activations(
    checkpoint: Checkpoint, model: Any, layers: Sequence[UnitLayer], batches: Sequence[Batch]
) -> dict[int, Tensor]:
    """Return for every unit the mean norm, over tokens, of what it adds to the residual stream."""
    import torch

    from merge.checkpoints.hooks import token_mask, token_rows, watching

    sums = {layer.number: torch.zeros(layer.count, dtype=torch.float64) for layer in layers}
    rows = dict.fromkeys(sums, 0)
    by_site = {str(layer.site): layer for layer in layers}
    readers = {layer.number: layer.readers[0] for layer in layers}
    weights = {n: place.weights(checkpoint.tensor(place.tensor).float()) for n, place in readers.items()}
    for batch in track(batches, "measuring units"):
        mask = token_mask(batch)

        def record(site: str, activation: Tensor, mask: Tensor | None = mask) -> None:
            layer, order = by_site[site], site.split(":")[2:]
            units = token_rows(activation, mask, *order).float()[:, readers[layer.number].positions]
            if units.shape[-1] == 1:
                norms = units[..., 0].abs() * weights[layer.number].norm(dim=(1, 2))
            else:
                norms = torch.einsum("tue,uer->tur", units, weights[layer.number]).norm(dim=-1)
            sums[layer.number] += norms.double().sum(0)
            rows[layer.number] += len(norms)

        with torch.inference_mode(), watching(model, by_site, record):
            model(**batch)
    return {number: total / max(rows[number], 1) for number, total in sums.items()}


def _lesions(
    checkpoint: Checkpoint, model: Any, layers: Sequence[UnitLayer], batches: Sequence[Batch]
) -> dict[int, Tensor]:
    """Return for every unit the mean divergence from the full model when the unit alone is zero."""
    import torch

    parameters = dict(model.named_parameters())
    scores = {layer.number: torch.zeros(layer.count, dtype=torch.float64) for layer in layers}
    with torch.inference_mode():
        full = [predictions(model(**batch), batch, checkpoint.config) for batch in batches]
        for layer, unit in track([(each, u) for each in layers for u in range(each.count)], "measuring units"):
            kept = {p: parameters[checkpoint.written_name(p.tensor)].clone() for p in layer.readers}
            for place, whole in kept.items():
                parameters[checkpoint.written_name(place.tensor)].copy_(place.without(whole, torch.tensor([unit])))
            totals = [
                divergence(before, predictions(model(**batch), batch, checkpoint.config))
                for before, batch in zip(full, batches, strict=True)
            ]
            scores[layer.number][unit] = sum(t for t, _ in totals) / max(sum(n for _, n in totals), 1)
            for place, whole in kept.items():
                parameters[checkpoint.written_name(place.tensor)].copy_(whole)
    return scores
