"""The repair step of a run: the checkpoint that was just written is read back, repaired and written again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.alignment.task import reference_of
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.modules import is_module_tensor
from merge.checkpoints.open import open_encoder
from merge.checkpoints.weights.arrays import TORCH
from merge.checkpoints.weights.write import open_writer
from merge.errors import UsageError
from merge.methods.slerp import Slerp
from merge.recipe.recipe import Recipe
from merge.run.engine.engine import Engine
from merge.run.engine.job import Job
from merge.run.report import Report
from merge.text.calibrated import calibrate

if TYPE_CHECKING:
    from torch import Tensor

# A few thousand tokens give means and deviations to a few hundredths, and every layer is measured anew.
TOKENS = 8192


def check_repair(recipe: Recipe, models: tuple[Checkpoint, ...]) -> None:
    """Stop before any work where a repair that was asked for cannot be done.

    Raises:
        UsageError: layers or tokens of the result are not those of every model, there is one model, or no tokenizer.
    """
    if not recipe.align.repair:
        return
    reference = models[reference_of(recipe.align, models)]
    faults = {
        "slices, whose layers are not those of every model": recipe.slices is not None,
        "a tokenizer rule, under which the models read other tokens": recipe.tokenizer is not None,
        "a single model, which no averaging has changed": len(models) == 1,
        f"{reference.source}, which has no tokenizer to read text with": not reference.has_tokenizer,
    }
    for fault, holds in faults.items():
        if holds:
            raise UsageError(f"--repair does not go with {fault}. Leave out one of the two.")


def repair_written(folder: Path, report: Report, engine: Engine) -> tuple[Report, dict[str, str]]:
    """Repair the checkpoint in a folder; return the report with what that did, and the hashes of its weight files.

    Args:
        engine: over the models that were merged, each in the basis of the merge.
    Raises:
        AlignmentError, CalibrationError: from the repair and its text.
    """
    from merge.alignment.pair import spread
    from merge.run.repair.repair import repair
    from merge.symmetry.architectures import spec_for

    entry, recipe = report.recipe.align, report.recipe
    reference = report.models[reference_of(entry, report.models)]
    batches = calibrate(entry.text_source(recipe.seed), reference, needed=True).batches
    written = open_encoder(str(folder))
    merged = {name: written.tensor(name).clone() for name in written.tensors}
    jobs = {job.name: job for job in report.plan.schedule.jobs if not is_module_tensor(job.name)}
    tensors, done = repair(
        written.config,
        merged,
        _endpoints(engine, jobs, len(report.models)),
        lambda name: shares(jobs[name], len(report.models)),
        spread(batches, TOKENS),
        spec_for(written.config),
        written.written_name,
    )
    hashes = _write(folder, written, tensors)
    return replace(report, repair=done.to_json(), notes=(*report.notes, *done.notes)), hashes


def _endpoints(engine: Engine, jobs: Mapping[str, Job], count: int) -> Iterator[dict[str, Tensor]]:
    """Yield, for every model, its tensors that are merged, by their names in the result."""
    for model in range(count):
        yield {
            name: engine.models[model].tensor(source)
            for name, job in jobs.items()
            for of, source in job.sources
            if of == model
        }


def shares(job: Job, count: int) -> tuple[float, ...]:
    """Return the weight of each model in one tensor of the merge: its method's weights, or slerp's lam; else equal ones."""
    if isinstance(job.method, Slerp):
        return 1 - float(job.method.lam), float(job.method.lam)
    weights = getattr(job.method, "weights", None)
    return (1.0,) * count if weights is None or len(weights) != count else tuple(map(float, weights))


def _write(folder: Path, written: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Replace the weights of a checkpoint and return the hashes of the files."""
    stored = {written.written_name(name): written.tensors[name] for name in tensors}
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()}
    ready: dict[str, Any] = {written.written_name(name): tensor.contiguous() for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory(prefix=".repair-", dir=folder) as temporary:
        with open_writer(Path(temporary), layout) as writer:
            for name in writer.slots:
                writer.write(name, TORCH.dtype(ready[name]), TORCH.raw(ready[name]))
        for path in sorted(Path(temporary).iterdir()):
            path.replace(folder / path.name)
    return writer.hashes
