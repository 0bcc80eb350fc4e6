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
