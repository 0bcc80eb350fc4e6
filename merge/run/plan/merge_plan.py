"""The plan of a merge: heads, schedule and vocabulary, from headers alone."""

from __future__ import annotations

from dataclasses import dataclass

from merge.checkpoints.model_set import ModelSet
from merge.checkpoints.tokenizers.vocabulary import VocabularyPlan
from merge.recipe.recipe import Recipe
from merge.run.plan.heads import HeadPlan
from merge.run.plan.schedule import Schedule, make_schedule
from merge.run.plan.vocabulary import choose_vocabulary


@dataclass(frozen=True)
class MergePlan:
    """What a merge reads and writes.

    Attributes:
        heads: which tensors are merged, which are copied, and the folders that are written.
        schedule: how each tensor of the first folder is made.
        vocabulary: where the rows of each model's tokens go; None where all models have one vocabulary.
    """

    heads: HeadPlan
    schedule: Schedule
    vocabulary: VocabularyPlan | None

    @property
    def models(self) -> ModelSet:
        """The models and the base, as they are merged."""
        return self.heads.given

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.schedule.notes, *(() if self.vocabulary is None else self.vocabulary.notes))


def plan_merge(recipe: Recipe, heads: HeadPlan) -> MergePlan:
    """Return the plan of a merge.

    Raises:
        RecipeError, UsageError, MismatchError: the recipe does not fit the models.
    """
    return MergePlan(heads, make_schedule(recipe, heads), choose_vocabulary(recipe, heads))
