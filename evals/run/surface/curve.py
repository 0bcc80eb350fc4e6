"""Train a curve of low loss between two models, and measure it beside the straight line, as they are and aligned."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.line import TaskData
from evals.run.options import EvalOptions, has_beside, reuse_result, stored_results
from evals.run.surface.checkpoints import read_point, write_point
from evals.run.surface.learning import Learning, check_trainable, training_rows
from evals.run.surface.models import Asked, asked_models, facts, prepared
from merge.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from evals.run.surface.models import Prepared
    from evals.tasks.label_names import MatchedTask
    from merge.alignment.settings import AlignEntry
    from merge.checkpoints.checkpoint import Checkpoint

# The keys of evals.paths.surface.curve.KINDS, here without loading torch.
KIND_NAMES = ("bezier", "chain")


@dataclass(frozen=True)
class CurvePlan:
    """What curve is trained, and where it is measured.

    Attributes:
        kind: one of KIND_NAMES.
        bends: trained points between the ends.
        points: of the even grid of t, both ends included.
    """

    kind: str = "bezier"
    bends: int = 1
    points: int = 11


def measure_curve(
    pair: tuple[Checkpoint, Checkpoint],
    data: TaskData,
    settings: AlignEntry,
    plan: CurvePlan,
    learning: Learning,
    options: EvalOptions,
) -> dict[str, Any]:
    """Return the curve record of two models: straight line and trained curve; both again if an alignment is asked for.

    With an output the bends are written as checkpoints, and an interrupted training goes on where it stopped.

    Raises:
        UsageError: there are no rows to train on, or the models have the same weights.
        MismatchError: the two models do not fit one another.
        TaskError: the task does not fit them.
    """
    from evals.results.measure import named, record_key, setting
    from evals.results.store import add_result
    from merge.recipe.recipe import make_align_entry

    begun, stored = time.monotonic(), stored_results(options)
    asked = asked_models(pair, [data], options)
    material, notes = training_rows(asked, data.task, learning, options)
    trained = [*learning.facts(material, options.seed), plan.kind, plan.bends]
    key = record_key("curve", *facts(asked, settings, options), *trained, plan.points)
    matched = asked.sets[0]
    names = {"models": [named(model) for model in asked.models], "data": matched.rows.data, "split": matched.rows.split}
    record = reuse_result(stored, key, names, options.output)
    if record is not None and has_beside(options.output, record.get("checkpoints")):
        return record
    record = setting("curve", key, matched.task, matched.rows) | names
    record |= {"train": {"data": material.rows.data, "rows": len(material.rows), **_training_facts(learning, options)}}
    record |= {"curve": plan.kind, "bends": plan.bends}
    # Of the results folder: bends are the same whatever grid they are measured on.
    made = record_key("bends", *facts(asked, settings, options), *trained)
    folder = f"curve-{matched.task.name}-{made.rsplit('-', 1)[-1][:8]}"
    record["checkpoints"] = folder if options.output else None
    variants = [("naive", make_align_entry({"by": "none"}))] + ([("aligned", settings)] if settings.moves else [])
    curves, collected = list[dict[str, Any]](), [*asked.notes, *notes]
    for name, of_variant in variants:
        waited = time.process_time()
        with prepared(asked, of_variant, options) as ready:
            seconds = time.process_time() - waited
            job = _Job(name, asked, ready, of_variant, plan, learning, options, folder)
            curves += _measured(job, material, seconds)
            collected += ready.notes
            if ready.alignment:
                record["alignment"] = list(ready.alignment)
    record |= {"curves": curves, "score": curves[0]["score"], "notes": list(dict.fromkeys(collected))}
    record["seconds"] = time.monotonic() - begun
    if options.output:
        add_result(options.output, record)
    return record


def _training_facts(learning: Learning, options: EvalOptions) -> dict[str, Any]:
    return {"steps": learning.steps, "rate": learning.rate, "rows_a_step": learning.rows_a_step, "seed": options.seed}


@dataclass(frozen=True)
class _Job:
    """One curve: of the models as they are, or of the aligned ones."""

    name: str
    asked: Asked
    ready: Prepared
    settings: AlignEntry
    plan: CurvePlan
    learning: Learning
    options: EvalOptions
    checkpoints: str

    def folder(self, what: str) -> Path | None:
        """Return the folder of a checkpoint of this curve; None without a results folder."""
        output = self.options.output
        return None if output is None else output / self.checkpoints / f"{self.name}-{what}"


def _measured(job: _Job, material: MatchedTask, alignment_seconds: float) -> list[dict[str, Any]]:
    """Return the straight line and the trained curve of a job, measured on the even grid of t."""
    from evals.paths.surface.curve import KINDS, curve_coefficients
    from evals.paths.surface.weights import gram
    from evals.results.measure import record_key

    check_trainable(job.ready)
    a, b = job.ready.weights
    if gram([a, b])[1, 1] == 0:
        raise UsageError(f"{job.asked.models[0].source} and {job.asked.models[1].source} have the same weights.")
    decided = facts(job.asked, job.settings, job.options)
    key = record_key("bend", *decided, *job.learning.facts(material, job.options.seed), job.plan.kind, job.plan.bends)
    bends, training = _bends(job, material, key)
    plan = job.plan
    line = _walk(job, (a, b), lambda t: (1 - t, t), record_key("chord-points", *decided), "straight line")
    curve = _walk(
        job,
        (a, *bends, b),
        lambda t: curve_coefficients(plan.kind, plan.bends, t),
        record_key("curve-points", key, *decided),
        KINDS[plan.kind],
    )
    cost = {"alignment_seconds": alignment_seconds if job.settings.moves else None}
    return [{**line, **cost}, {**curve, "training": training, **cost}]


def _bends(job: _Job, material: MatchedTask, key: str) -> tuple[list[Mapping[str, Tensor]], dict[str, Any]]:
    """Return the trained bends and facts of the training; those that an earlier run has written are read."""
    from evals.paths.surface.curve import curve_coefficients
    from evals.paths.surface.points import FOLDER
    from evals.paths.surface.training import Training, train_points, training_material
    from evals.paths.surface.weights import combine

    plan, learning, options, ready = job.plan, job.learning, job.options, job.ready
    folders = [job.folder(f"bend{k + 1}") for k in range(plan.bends)]
    if not options.force and all(folder is not None for folder in folders):
        found = [read_point(folder, f"{key}-{k}") for k, folder in enumerate(folders) if folder is not None]
        if all(each is not None for each in found):
            return [each[0] for each in found if each], dict(found[0][1]["training"]) if found[0] else {}
    a, b = ready.weights
    count = plan.bends + 1
    start = [combine((a, b), (1 - k / count, k / count)) for k in range(1, count)]

    def draw(numbers: random.Random) -> list[float]:
        first, *inner, last = curve_coefficients(plan.kind, plan.bends, numbers.random())
        return [first, last, *inner]

    kept = None if options.output is None else options.output / FOLDER / f"{key}.safetensors"
    if kept is not None and options.force:
        kept.unlink(missing_ok=True)
    begun = time.process_time()
    trained = train_points(
        ready.predictor.model,
        (a, b),
        start,
        draw,
        training_material(material, ready.checkpoint, not options.no_cache, options.max_length),
        Training(learning.steps, learning.rate, learning.rows_a_step, options.seed),
        kept,
        label=f"training the {job.name} curve",
    )
    tail = trained.losses[-max(1, len(trained.losses) // 10) :]
    training = {
        "cpu_seconds": time.process_time() - begun,
        "steps_of_this_run": trained.steps,
        "last_loss": sum(tail) / len(tail) if tail else None,
    }
    for k, (folder, weights) in enumerate(zip(folders, trained.points, strict=True)):
        if folder is not None:
            write_point(folder, ready.checkpoint, weights, {"key": f"{key}-{k}", "training": training})
    if (end := job.folder("b")) is not None and job.settings.moves:
        write_point(end, ready.checkpoint, b, {"key": f"{key}-b"})
    if kept is not None:
        kept.unlink(missing_ok=True)
    return list(trained.points), training


def _walk(
    job: _Job,
    models: Sequence[Mapping[str, Tensor]],
    coefficients: Callable[[float], Sequence[float]],
    key: str,
    what: str,
) -> dict[str, Any]:
    """Return the losses along a path at the even grid of t, and their summary."""
    import numpy as np

    from evals.paths.refine import even_grid
    from evals.paths.surface.curve import summarise_curve
    from evals.paths.surface.points import measure_points, point_store, score_name
    from evals.paths.surface.weights import combine, gram, inner

    ready, grid = job.ready, even_grid(job.plan.points)
    at = [tuple(coefficients(t)) for t in grid]
    with point_store(job.options.output, key, job.options.force) as store:
        values = measure_points(
            at, lambda c: combine(models, c), ready.predictor, ready.encoded, store, f"{job.name} {what}"
        )
    products = gram(models)
    moves = np.diff(np.array(at), axis=0)
    steps = [max(inner(products, move, move), 0.0) ** 0.5 for move in moves]
    loss = [value[0].loss for value in values]
    return {
        "name": f"{job.name} {what}",
        "t": grid,
        "loss": loss,
        "standard_error": [value[0].standard_error for value in values],
        "scores": [next(iter(value[0].scores.values())) for value in values],
        "score": score_name(values[0][0].scores),
        **asdict(summarise_curve(grid, loss, steps)),
    }
