"""Proof of a pruning: the written folder, loaded as its users will, against the model that it should equal.

That model is the input itself, with the activations of the removed units multiplied by zero while it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint, without_absent_pooler
from merge.checkpoints.hooks import watching
from merge.checkpoints.reload_check import trial_batch
from merge.checkpoints.transformers_model import loading, model_class, quiet
from merge.errors import OutputError, one_line
from merge.layers.pruning.running import float_model, in_own_memory
from merge.layers.pruning.selection import Removal

if TYPE_CHECKING:
    from torch import Tensor

    from merge.layers.pruning.units import UnitLayer

# The largest difference that rounding explains, in standard deviations of the output, in float32.
BOUND = 1e-4


def against_gated(
    checkpoint: Checkpoint, layers: Iterable[UnitLayer], removal: Removal, config: Mapping[str, Any]
) -> Callable[[Path], tuple[str, float]]:
    """Return the proof that a folder computes what the input does with the outputs of removed units multiplied by zero.

    Where no module reads the units alone (XLNet's heads), the weights that read them are zero instead.

    Args:
        removal: layer -> units; none for a pruning that changes no output.
        config: of the folder.
    """
    gated = [layer for layer in layers if removal.get(layer.number)]

    def prove(folder: Path) -> tuple[str, float]:
        model = float_model(checkpoint)
        batch = trial_batch(model)
        before = gated_outputs(checkpoint, model, gated, removal, batch)
        after = run(without_absent_pooler(checkpoint, loaded(folder, config)), batch)
        examples = len(next(iter(batch.values())))
        what = "its outputs and those of the input" + (" with the removed units multiplied by zero" if gated else "")
        return f"{what} on {examples} random inputs", largest_difference(before, after)

    return prove


def gated_outputs(
    checkpoint: Checkpoint, model: Any, layers: Iterable[UnitLayer], removal: Removal, batch: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the outputs of the input's model with the outputs of some units multiplied by zero."""
    import torch

    columns: dict[str, Tensor] = {}
    for layer in layers:
        units = torch.tensor(removal[layer.number])
        if layer.site is not None:
            columns[layer.site] = layer.readers[0].positions[units].reshape(-1)
            continue
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for place in layer.readers:
                weight = parameters[checkpoint.written_name(place.tensor)]
                weight.copy_(place.without(weight, units))

    def close(site: str, activation: Tensor) -> None:
        activation[..., columns[site]] *= 0.0

    with watching(model, columns, close):
        return run(model, batch)


def loaded(folder: Path, config: Mapping[str, Any]) -> Any:
    """Return the model of a written folder in float32, loaded by from_pretrained."""
    import torch

    with loading():
        model = model_class(config).from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    return in_own_memory(model.eval())


def run(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a model that are tensors.

    Raises:
        OutputError: it does not run.
    """
    import torch

    try:
        with torch.inference_mode(), quiet():
            outputs = model(**batch)
    # Model code raises errors of many kinds for inputs that it does not take.
    except (ValueError, TypeError, LookupError, RuntimeError, AttributeError, AssertionError) as error:
        raise OutputError(
            f"{type(model).__name__} does not run, so nothing can be proved: {one_line(error)}"
        ) from error
    return {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}


def largest_difference(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Return the largest difference of any output in its standard deviations; infinity where the outputs are not alike."""
    if not before or before.keys() != after.keys() or any(before[k].shape != after[k].shape for k in before):
        return math.inf
    worst = 0.0
    for name, old in before.items():
        if bool((old == after[name]).all()):
            continue
        old, new = old.double(), after[name].double()
        spread = float(old.std()) if old.numel() > 1 else 0.0
        error = float((old - new).abs().max()) / (spread or 1.0)
        worst = math.inf if math.isnan(error) else max(worst, error)
    return worst
