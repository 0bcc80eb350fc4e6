"""The run: from a recipe to a merged checkpoint, in one pass from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from merge.alignment.choice.requested import Choices
from merge.alignment.rewrite import resized, rewritten
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.model_set import ModelSet, same_weights
from merge.checkpoints.open import open_base, open_checkpoint
from merge.checkpoints.weights.arrays import check_device, import_torch
from merge.disk.staging import output_notes, staged
from merge.errors import some
from merge.progress import begin_phase
from merge.recipe.recipe import Recipe
from merge.run.evaluation import check_evaluation, evaluate
from merge.run.model_statistics import with_statistics
from merge.run.options import DEFAULTS, RunOptions
from merge.run.outputs import numpy_suffices, write_outputs
from merge.run.plan.extra_tensors import settle_extra_tensors
from merge.run.plan.heads import HeadPlan, plan_heads
from merge.run.plan.merge_plan import plan_merge
from merge.run.plan.preflight import Allowed, preflight
from merge.run.plan.schedule import make_schedule
from merge.run.rebase import choose_alignments, rebase
from merge.run.repair.step import check_repair
from merge.run.report import Report
from merge.run.search.cocktail import cocktail_weights
from merge.run.search.greedy_soup import greedy_soup

FILES_SHOWN = 6  # in a note


def run(
    recipe: Recipe,
    force: bool = False,
    dry_run: bool = False,
    options: RunOptions = DEFAULTS,
    models: ModelSet | None = None,
) -> Report:
    """Merge the models of a recipe and write the result to its output folder.

    With `dry_run` everything up to and including the proof of the alignment is done, and nothing is written.

    Args:
        force: whether an output folder that merge-models wrote may be replaced.
        models: the recipe's models and base, where they are open already; opened by their names when None.
    Raises:
        MergeError: a child of it for every fault of input or output; nothing is left half written.
    """
    begun = time.monotonic()
    begin_phase("checking the models")
    inputs, extra_notes = settle_extra_tensors(recipe, models or _open(recipe))
    output = Path(recipe.output).expanduser()
    output_faults = output_notes(output, force, [checkpoint.folder for checkpoint in inputs.all], dry_run)
    check_evaluation(recipe)
    with ExitStack() as stack:
        hashes = stack.enter_context(_hashing(inputs))
        check_repair(recipe, inputs.models)
        fitted = stack.enter_context(resized(recipe.align, inputs, recipe.seed, output))
        heads = plan_heads(recipe.heads, fitted.models)
        notes = (
            *output_faults,
            *preflight(heads, Allowed.by(recipe), output),
            *same_weights(inputs),
            *extra_notes,
            *fitted.notes,
        )
        check_device(options.device)
        choices = _choose(recipe, heads, options, output)
        ready = stack.enter_context(rewritten(recipe.align, heads.given, output, choices))
        if ready.models is not heads.given:
            heads = plan_heads(recipe.heads, ready.models)
        plan = plan_merge(recipe, heads)
        if not numpy_suffices(recipe, plan, options):
            import_torch()
        rebased = rebase(recipe.align, heads, recipe.seed, choices, options.device)
        notes = (*notes, *_left_behind(heads), *ready.notes, *plan.notes, *rebased.notes)
        report = Report(recipe, inputs, plan, rebased, notes)
        if not dry_run:
            report = _with_weights(with_statistics(report), options, hashes)
            with staged(output, force) as folder:
                report = write_outputs(folder, report, options, hashes)
    if not dry_run:
        report = replace(report, notes=(*report.notes, *evaluate(recipe, inputs.models)))
    return replace(report, seconds=time.monotonic() - begun)


def _open(recipe: Recipe) -> ModelSet:
    models = tuple(open_checkpoint(entry.model, entry.revision) for entry in recipe.models)
    return ModelSet(models, None if recipe.base is None else open_base(recipe.base.model, recipe.base.revision))


@contextmanager
def _hashing(inputs: ModelSet) -> Iterator[Sequence[Future[Any]]]:
    """Hash the weights of the inputs in a thread, while torch is imported and tensors are merged."""
    with ThreadPoolExecutor(1, thread_name_prefix="hashing") as pool:
        try:
            yield [pool.submit(_hash_weights, checkpoint) for checkpoint in inputs.all]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _hash_weights(checkpoint: Checkpoint) -> dict[str, str]:
    return checkpoint.weight_hashes


def _choose(recipe: Recipe, heads: HeadPlan, options: RunOptions, output: Path) -> Choices | None:
    """Return the alignments that auto chooses, after the faults of the recipe, which are cheap to find."""
    if recipe.align.by != "auto":
        return None
    plan_merge(recipe, heads)
    return choose_alignments(recipe.align, heads, recipe.seed, options.device, output)


def _left_behind(heads: HeadPlan) -> list[str]:
    owners = [output.owner for output in heads.outputs]
    return [
        f"not copied from {owner.source}: {some(owner.left_behind, FILES_SHOWN)}"
        for owner in owners
        if owner.left_behind
    ]


def _with_weights(report: Report, options: RunOptions, hashes: Sequence[Future[Any]]) -> Report:
    """Return the report with the weights that greedy_soup or cocktail choose for whole models; others are unchanged."""

    def weighted(recipe: Recipe) -> Report:
        schedule = make_schedule(recipe, report.plan.heads)
        return replace(report, recipe=recipe, plan=replace(report.plan, schedule=schedule))

    def write(candidate: Recipe, folder: Path) -> None:
        write_outputs(folder, weighted(candidate), options, hashes)

    recipe, scored = greedy_soup(report.recipe, report.models, write)
    recipe, measured = cocktail_weights(recipe, tuple(model.encoder for model in report.models))
    return replace(weighted(recipe), notes=(*report.notes, *scored, *measured))
