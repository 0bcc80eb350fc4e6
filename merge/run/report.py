"""The report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.tokenizers.vocabulary import VocabularyPlan
from merge.recipe.recipe import Recipe
from merge.run.plan.schedule import Schedule
from merge.run.rebase import Bases

if TYPE_CHECKING:
    from merge.methods.statistics.record import Statistics


@dataclass(frozen=True)
class Report:
    """What a run did: printed, and the source of manifest and card.

    Attributes:
        checkpoints, base: as they were aligned and merged.
        inputs: models and base as they were given.
        repair: what a repair of the written weights did.
    """

    recipe: Recipe
    checkpoints: tuple[Checkpoint, ...]
    base: Checkpoint | None
    schedule: Schedule
    bases: Bases
    vocabulary: VocabularyPlan | None
    notes: tuple[str, ...]
    inputs: tuple[tuple[Checkpoint, ...], Checkpoint | None]
    statistics: Mapping[str, Sequence[Statistics]] = field(default_factory=dict)
    repair: Mapping[str, Any] | None = None
    bytes: int = 0
    seconds: float = 0.0

    @property
    def asked(self) -> Recipe:
        """The recipe that repeats the run: without a rotation that auto chose, and would choose again."""
        if not any(one.choice.kept.rotated for one in self.bases.aligned):
            return self.recipe
        return self.recipe.model_copy(update={"align": self.recipe.align.model_copy(update={"residual": None})})
