"""Choose the vocabulary of the result, and check that the rows of every model can be brought into it."""

from __future__ import annotations

from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.tokenizers.tokenizer import read_tokenizer
from merge.checkpoints.tokenizers.vocabulary import VocabularyPlan, plan_vocabulary
from merge.errors import MismatchError, UsageError, nearest
from merge.recipe.recipe import Recipe
from merge.run.plan.heads import HeadPlan


def vocabulary_names(reference: Checkpoint) -> frozenset[str]:
    """Return the canonical names of the tensors that hold one row per token."""
    return frozenset(reference.canonical_name(name) for name in reference.structure.vocabulary)


def choose_vocabulary(recipe: Recipe, heads: HeadPlan) -> VocabularyPlan | None:
    """Return the plan of the vocabulary that the recipe asks for; None where it asks for none, and all agree.

    Raises:
        UsageError: the recipe names a tokenizer that is not one of its models.
        MismatchError: the vocabularies cannot be combined, or models are to be aligned as well.
    """
    if recipe.tokenizer is None:
        return None
    given = heads.given
    numbers: dict[str, int] = {entry.model: k for k, entry in reversed(list(enumerate(recipe.models)))}
    numbers |= {"reference": 0}
    if given.base is not None:
        numbers["base"] = len(given.models)
    sources = [*numbers, "union"]
    if recipe.tokenizer not in sources:
        raise UsageError(
            f"unknown tokenizer {recipe.tokenizer!r}: it is not one of the models.{nearest(recipe.tokenizer, sources)}"
        )
    sizes = [checkpoint.structure.settings["vocab_size"] for checkpoint in given.all]
    chosen: Any = "union" if recipe.tokenizer == "union" else numbers[recipe.tokenizer]
    plan = plan_vocabulary([read_tokenizer(c.folder) for c in given.all], [c.source for c in given.all], sizes, chosen)
    _check_copied_rows(heads, plan)
    moved = any(rows.tolist() != list(range(size)) for rows, size in zip(plan.rows, sizes, strict=True))
    if moved and recipe.align.moves:
        raise MismatchError(
            "models of different vocabularies cannot be aligned: they read different tokens in the same text. "
            "Merge them with --align none, or bring them into one vocabulary first."
        )
    return plan


def _check_copied_rows(heads: HeadPlan, plan: VocabularyPlan) -> None:
    """Stop where a copied head with one row per token has no row for some tokens of the result's vocabulary."""
    for output in heads.outputs:
        for name in sorted(output.copied & vocabulary_names(output.owner)):
            ((model, _),) = output.sources[name]
            lacking = int((plan.rows[model] < 0).sum())
            if lacking:
                source = heads.given.models[model].source
                raise MismatchError(
                    f"{name} of {source} has one row per token, and none for {lacking} tokens of the result's vocabulary: this "
                    f"head cannot go along with it. Use --tokenizer {source}, or --heads drop."
                )
