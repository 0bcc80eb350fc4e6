"""The feed-forward output projection of a layer of an edited model: its names, what it reads, and the norm after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merge.checkpoints.hooks import watching
from merge.errors import UsageError
from merge.layers.activations import EnoughError, LiveLayers
from merge.layers.assembly import Assembly
from merge.layers.stacks import layer_of

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch


def read_projection(student: LiveLayers, index: int, assembly: Assembly, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows that the output projection of a layer reads, those that it writes, and what is added to them."""
    parts, layer = assembly.parts, f"{student.path}.{student.names[index]}"
    down = f"{layer}.{parts.down}"
    total = f"{layer}.{parts.norm}:in" if parts.norm is not None else f"{layer}:out"
    seen: dict[str, Tensor] = {}

    def see(site: str, activation: Tensor) -> None:
        seen[site] = student.rows(activation, batch)
        if site == total:
            raise EnoughError

    with torch.inference_mode():
        try:
            with watching(student.model.base_model, [f"{down}:in", f"{down}:out", total], see):
                student.model(**batch)
        except EnoughError:
            pass
    x, y = seen[f"{down}:in"], seen[f"{down}:out"]
    return x, y, seen[total] - y


def layer_tensors(assembly: Assembly, model: int, layer: int, part: str) -> dict[str, Tensor]:
    """Return the tensors of a part of a source layer, by the end of their names."""
    family, stack = str(assembly.config["model_type"]), assembly.plan.stack
    named = {name: layer_of(name, family, stack) for name in assembly.models[model].encoder.tensors}
    if family == "albert":
        from merge.layers.config import group_of

        layer = group_of(layer, assembly.models[model].config)
    return {
        split[2][1:].removeprefix(part): assembly.source(model, name)
        for name, split in named.items()
        if split is not None and split[1] == layer and split[2][1:].startswith(f"{part}.")
    }


@dataclass(frozen=True)
class Projection:
    """Output names of the projection that is refitted.

    Attributes:
        layer: what the names of the output layer begin with.
        bias: None where the projection has none.
    """

    layer: str
    weight: str
    bias: str | None

    @classmethod
    def of(cls, assembly: Assembly, index: int) -> Projection:
        family, stack = str(assembly.config["model_type"]), assembly.plan.stack
        split = {name: layer_of(name, family, stack) for name in assembly.tensors.sources}
        stored = {part[1] for part in split.values() if part is not None}
        if len(stored) != len(assembly.plan.layers):
            raise UsageError(
                f"{family}: {len(assembly.plan.layers)} layers share {len(stored)} sets of weights here, so none of them can be "
                "refitted alone. Use --repair none with --heal-steps."
            )
        return cls.stored_as(assembly, index)

    @classmethod
    def stored_as(cls, assembly: Assembly, number: int) -> Projection:
        """Return the names of the layer that is stored under a number."""
        family, stack = str(assembly.config["model_type"]), assembly.plan.stack
        split = {name: layer_of(name, family, stack) for name in assembly.tensors.sources}
        layer = next(f"{p[0]}{p[1]}." for p in split.values() if p is not None and p[1] == number)
        weight, bias = (f"{layer}{assembly.parts.down}.{end}" for end in ("weight", "bias"))
        return cls(layer, weight, bias if bias in split else None)

    def transposed(self, student: LiveLayers, index: int) -> bool:
        """Return whether the weight is stored as (inputs, outputs), as GPT-2 does."""
        from transformers.pytorch_utils import Conv1D

        path = self.weight.removeprefix(self.layer).removesuffix(".weight")
        return isinstance(student.module(index, path), Conv1D)
