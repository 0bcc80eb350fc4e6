"""The report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.model_set import ModelSet
from merge.recipe.recipe import Recipe
from merge.run.plan.merge_plan import MergePlan
from merge.run.rebase import Rebased

if TYPE_CHECKING:
    from merge.methods.statistics.record import Statistics


@dataclass(frozen=True)
class Report:
    """What a run did: printed, and the source of manifest and card.

    Attributes:
        inputs: models and base as they were given.
        plan: of the merge; its models are the inputs, rewritten where the alignment needs that.
        rebased: how they were brought into the reference's basis.
        notes: sentences for the user.
        statistics: kind -> the statistics of each model, in the reference's basis.
        repair: what a repair of the written weights did.
        bytes: of the written weights.
        seconds: that the run took.
    """

    recipe: Recipe
    inputs: ModelSet
    plan: MergePlan
    rebased: Rebased
    notes: tuple[str, ...]
    statistics: Mapping[str, Sequence[Statistics]] = field(default_factory=dict)
    repair: Mapping[str, Any] | None = None
    bytes: int = 0
    seconds: float = 0.0

    @property
    def models(self) -> tuple[Checkpoint, ...]:
        """The models as they are aligned and merged, the reference first."""
        return self.plan.models.models
