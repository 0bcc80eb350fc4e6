"""The models of a merge and their base, as one record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from merge.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True)
class ModelSet:
    """The models of a merge, the reference first, and the base that task vectors are measured from; None without."""

    models: tuple[Checkpoint, ...]
    base: Checkpoint | None = None

    @property
    def reference(self) -> Checkpoint:
        return self.models[0]

    @property
    def all(self) -> tuple[Checkpoint, ...]:
        """The models, then the base where there is one."""
        return self.models if self.base is None else (*self.models, self.base)

    def map(self, change: Callable[[Checkpoint], Checkpoint]) -> ModelSet:
        """Return the set with every checkpoint changed."""
        return ModelSet(tuple(map(change, self.models)), None if self.base is None else change(self.base))


def same_weights(inputs: ModelSet) -> list[str]:
    """Return a note for each model, and for the base, that holds the weights of a model before it, by content."""
    notes: list[str] = []
    for k, model in enumerate(inputs.all):
        twin = next((earlier for earlier in inputs.models[:k] if same_tensors(earlier, model)), None)
        if twin is None:
            continue
        where = "is given twice" if twin.folder == model.folder else f"holds the same weights as {twin.source}"
        is_base = model is inputs.base
        effect = "as the base it gives that model no task vector" if is_base else "it only adds to that model's weight"
        notes.append(f"{model.source} {where}, in every tensor: {effect}")
    return notes


def same_tensors(a: Checkpoint, b: Checkpoint) -> bool:
    """Return whether two checkpoints hold the same tensors, bit by bit; a sample of each tells most pairs apart."""
    import numpy as np

    if a.tensors.keys() != b.tensors.keys() or a.fingerprint != b.fingerprint:
        return False
    pairs = ((a.array(name).reshape(-1), b.array(name).reshape(-1)) for name in a.tensors)
    return all(np.array_equal(left.view("u1"), right.view("u1")) for left, right in pairs)
