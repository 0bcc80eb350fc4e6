"""The run: from a recipe to a merged checkpoint, in one pass from top to bottom."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from merge.alignment.rewrite import prepared, resized
from merge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merge.checkpoints.weights.arrays import check_device, import_torch
from merge.disk.staging import check_output, staged
from merge.recipe.recipe import Recipe
from merge.run.evaluation import check_evaluation, evaluate
from merge.run.outputs import AS_USUAL, Means, plain, write_outputs
from merge.run.plan.heads import plan_heads
from merge.run.plan.preflight import Allowed, preflight
from merge.run.plan.schedule import make_schedule
from merge.run.plan.vocabulary import find_vocabulary
from merge.run.rebase import find_bases
from merge.run.repair.step import check_repair
from merge.run.report import Report
from merge.run.search.cocktail import cocktail_weights
from merge.run.search.greedy_soup import greedy_soup
from merge.text.calibrated import calibrate

if TYPE_CHECKING:
    from merge.methods.statistics.record import Statistics


def run(recipe: Recipe, force: bool = False, dry_run: bool = False, means: Means = AS_USUAL) -> Report:
    """Merge what the recipe says and write it to its output folder.

    With `dry_run` everything up to and including alignment and its proof is done, and nothing is written.

    Raises:
        MergeError: a child of it for every fault of input or output; nothing is left half written.
    """
    begun = time.monotonic()
    models = tuple(open_checkpoint(m.model, m.revision) for m in recipe.models)
    base = None if recipe.base is None else open_checkpoint(recipe.base.model, recipe.base.revision)
    output = Path(recipe.output).expanduser()
    everyone = models if base is None else (*models, base)
    check_output(output, force, [c.folder for c in everyone])
    check_evaluation(recipe)
    with ThreadPoolExecutor(1, thread_name_prefix="hashing") as hashing, ExitStack() as stack:
        # Meanwhile torch is imported and tensors are merged.
        hashes = [hashing.submit(_hash_weights, checkpoint) for checkpoint in everyone]
        try:
            check_repair(recipe, models)
            fitted = stack.enter_context(resized(recipe.align, models, recipe.seed, output))
            notes = (*preflight(fitted.models, base, recipe.heads, Allowed.by(recipe), output), *fitted.notes)
            ready = stack.enter_context(prepared(recipe.align, fitted.models, base, output))
            inputs, models, base = (models, base), ready.models, ready.base
            schedule = make_schedule(recipe, models, base)
            check_device(means.device)
            for one in plan_heads(recipe.heads, models, base).outputs:
                if left := one.owner.left_behind:
                    notes = (*notes, f"not copied from {one.owner.source}: {', '.join(left)}")
            if not plain(recipe, schedule, models if base is None else (*models, base), means):
                import_torch()
            vocabulary = find_vocabulary(recipe, models, base)
            asked = (recipe.heads, recipe.seed)
            bases = find_bases(recipe.align, models, base, *asked, rotate=True, device=means.device)
            if bases.rotated:
                recipe = _rotating(recipe)
                ready = stack.enter_context(prepared(recipe.align, *inputs, output))
                models, base = ready.models, ready.base
                schedule, vocabulary = make_schedule(recipe, models, base), find_vocabulary(recipe, models, base)
                bases = find_bases(recipe.align, models, base, *asked, decided=bases.rotated, device=means.device)
            notes = (
                *notes,
                *ready.notes,
                *schedule.notes,
                *(() if vocabulary is None else vocabulary.notes),
                *bases.notes,
            )
            report = Report(recipe, models, base, schedule, bases, vocabulary, notes, inputs)
            if not dry_run:
                report = _weigh(_measure(report, means), means, hashes)
                with staged(output) as folder:
                    report = write_outputs(folder, report, means, hashes)
        except BaseException:
            hashing.shutdown(wait=False, cancel_futures=True)
            raise
    if not dry_run:
        report = dataclasses.replace(report, notes=(*report.notes, *evaluate(recipe, inputs[0])))
    return dataclasses.replace(report, seconds=time.monotonic() - begun)


def _rotating(recipe: Recipe) -> Recipe:
    """Return the recipe with the rotation of the residual stream that auto chose."""
    return recipe.model_copy(update={"align": recipe.align.model_copy(update={"residual": "rotation"})})


def _hash_weights(checkpoint: Checkpoint) -> dict[str, str]:
    return checkpoint.weight_hashes


def _measure(report: Report, means: Means) -> Report:
    """Return the report with the statistics that the methods need, measured or from the cache, in the reference's basis."""
    kinds = sorted({job.method.statistics for job in report.schedule.jobs if job.method.statistics is not None})
    if not kinds:
        return report
    from merge.methods.statistics.measure import statistics_for
    from merge.methods.statistics.permute import move_statistics

    recipe, bases, reference = report.recipe, report.bases, report.checkpoints[0]
    batches, text, notes = calibrate(recipe.statistics.text_source(recipe.seed), reference, needed=True)
    found: dict[str, list[Statistics]] = {kind: [] for kind in kinds}
    for kind in kinds:
        for k, (checkpoint, transform) in enumerate(zip(report.checkpoints, bases.transforms, strict=True)):
            measured = statistics_for(checkpoint.encoder, kind, batches, text=str(text), seed=recipe.seed)
            if transform is not None and (spec := bases.spec_of(k)) is not None:
                measured = move_statistics(spec, transform, measured)
            found[kind].append(measured)
    return dataclasses.replace(report, statistics=found, notes=(*report.notes, *notes))


def _weigh(report: Report, means: Means, hashes: Sequence[Future[dict[str, str]]]) -> Report:
    """Return the report with the weights that greedy_soup or cocktail find for whole models; others as they are."""

    def weighed(recipe: Recipe) -> Report:
        schedule = make_schedule(recipe, report.checkpoints, report.base)
        return dataclasses.replace(report, recipe=recipe, schedule=schedule)

    def write(candidate: Recipe, folder: Path) -> None:
        write_outputs(folder, weighed(candidate), means, hashes)

    recipe, scored = greedy_soup(report.recipe, report.checkpoints, write)
    recipe, measured = cocktail_weights(recipe, tuple(model.encoder for model in report.checkpoints))
    return dataclasses.replace(weighed(recipe), notes=(*report.notes, *scored, *measured))
