"""What a merge leaves: every folder that comes of it, tensor by tensor, with all that makes it a checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merge.alignment.choice.requested import keeps_canonical
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.modules import is_module_tensor
from merge.checkpoints.reload_check import reload_check
from merge.checkpoints.tokenizers.tokenizer import tokenizer_names
from merge.checkpoints.tokenizers.vocabulary import config_changes, write_tokenizer
from merge.checkpoints.weights.arrays import (
    DTYPES,
    NUMPY,
    Array,
    Arrays,
    TorchArrays,
    import_torch,
    suit_numpy,
    torch_dtype,
)
from merge.checkpoints.weights.read import StoredTensor, nbytes
from merge.checkpoints.weights.write import open_writer
from merge.disk.staging import copy_side_files, write_json
from merge.publish.card import write_card
from merge.recipe.recipe import Recipe
from merge.run.engine.engine import CommonRows, Engine, Input, Job
from merge.run.manifest import manifest, report_facts
from merge.run.plan.heads import Output, plan_heads
from merge.run.plan.output_config import merged_config
from merge.run.plan.schedule import Schedule, make_schedule
from merge.run.plan.vocabulary import vocabulary_names
from merge.run.repair.step import repair_written
from merge.run.report import Report

if TYPE_CHECKING:
    from torch import Tensor

    from merge.methods.statistics.record import Statistics
    from merge.symmetry.spec import PermutationSpec
    from merge.symmetry.transform import Transform

LETTERS = {name: letters for letters, name in DTYPES.items()}  # torch's name of a dtype -> safetensors'


@dataclass(frozen=True)
class Means:
    """How a run is carried out; nothing of it changes what is written.

    Attributes:
        threads: that merge tensors; None for one per core that this process may use.
        device: where the arithmetic is done. (Another device rounds sums in another order.)
        recheck: load the output with transformers even where this layout is known to load.
    """

    threads: int | None = None
    device: str = "cpu"
    recheck: bool = False

    @property
    def workers(self) -> int:
        if self.threads:
            return self.threads
        # Only Linux tells which cores a process may use.
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


AS_USUAL = Means()


def plain(recipe: Recipe, schedule: Schedule, everyone: Sequence[Checkpoint], means: Means) -> bool:
    """Tell whether numpy can do all of this run's arithmetic, as far as the recipe and the headers say."""
    as_stored = not recipe.align.moves and recipe.tokenizer is None and means.device == "cpu"
    read = [tensor for checkpoint in everyone for tensor in checkpoint.tensors.values()]
    written = [_written(recipe, everyone[job.sources[0][0]].tensors[job.sources[0][1]]) for job in schedule.jobs]
    return as_stored and schedule.arithmetic and suit_numpy(read, written)


def _arrays(report: Report, means: Means) -> Arrays:
    """Return numpy's arrays where nothing of the run needs torch, else torch's; both write the same bytes."""
    everyone = [*report.checkpoints, *([] if report.base is None else [report.base])]
    moved = any(t is not None for t in (*report.bases.transforms, report.bases.base_transform))
    if not moved and plain(report.recipe, report.schedule, everyone, means):
        return NUMPY
    import_torch()
    return TorchArrays(means.device)


def write_outputs(folder: Path, report: Report, means: Means, hashes: Sequence[Future[dict[str, str]]]) -> Report:
    """Write every folder that comes of a merge, and return the report with what was said of them."""
    total, recipe = 0, report.recipe
    for k, output in enumerate(plan_heads(recipe.heads, report.checkpoints, report.base).outputs):
        schedule = report.schedule if k == 0 else make_schedule(recipe, report.checkpoints, report.base, k)
        (folder / output.folder).mkdir(exist_ok=True)
        done = _write_output(
            folder / output.folder, dataclasses.replace(report, schedule=schedule), output, means, hashes
        )
        total += done.bytes
        notes = tuple(dict.fromkeys((*report.notes, *done.notes)))
        report = dataclasses.replace(report, notes=notes, repair=done.repair)
    return dataclasses.replace(report, bytes=total)


def _write_output(
    folder: Path, report: Report, output: Output, means: Means, hashes: Sequence[Future[dict[str, str]]]
) -> Report:
    """Write everything a merged checkpoint is made of, check that it loads, and return the report with what that said."""
    owner, recipe = output.owner, report.recipe
    layout = {job.name: _planned(job, report) for job in report.schedule.jobs}
    known = _write_weights(folder, report, owner, layout, means)
    shown = report.checkpoints if recipe.heads is None else (owner,)
    config = merged_config(shown, recipe.out_dtype, report.schedule.plan)
    if report.vocabulary is not None:
        model = next(k for k, checkpoint in enumerate(report.checkpoints) if checkpoint.source == owner.source)
        config = {**config, **config_changes(report.vocabulary, config, model)}
    write_json(folder / "config.json", config)
    copy_files(folder, report, owner)
    (folder / "recipe.yaml").write_text(
        f"# merge-models --recipe recipe.yaml\n{report.asked.to_yaml()}", encoding="utf-8", newline="\n"
    )
    save_alignment(folder, report)
    if recipe.align.repair:
        report, repaired = repair_written(folder, report, _engine(report, _arrays(report, means)))
        known |= repaired
    # A model in another basis went through more hands than the layout shows.
    notes = reload_check(folder, config, owner.folder, means.recheck or recipe.align.moves)
    for found in hashes:
        found.result()
    size = sum(nbytes(dtype, shape) for dtype, shape in layout.values())
    report = dataclasses.replace(report, bytes=size, notes=(*report.notes, *notes))
    facts = report_facts(report, output)
    write_card(folder, facts)
    write_json(folder / "merge.json", manifest(facts, recipe.seed, folder, known))
    return report


def _write_weights(
    folder: Path, report: Report, owner: Checkpoint, layout: Mapping[str, tuple[str, tuple[int, ...]]], means: Means
) -> dict[str, str]:
    """Merge and write every tensor: the model's into the folder, each module's into its own; return the files' hashes."""
    places = {name: name.rpartition("/")[0] if is_module_tensor(name) else "" for name in layout}
    written = {name: name.rpartition("/")[2] if place else owner.written_name(name) for name, place in places.items()}
    arrays, known = _arrays(report, means), dict[str, str]()
    with ExitStack() as stack:
        writers = {}
        for place in dict.fromkeys(places.values()):
            (folder / place).mkdir(exist_ok=True)
            own = {written[name]: planned for name, planned in layout.items() if places[name] == place}
            writers[place] = stack.enter_context(open_writer(folder / place, own))
        # In the order of the files, which are hashed from their beginnings on.
        order = {(place, name): at for place, writer in writers.items() for at, name in enumerate(writer.slots)}

        def write(name: str, piece: Array, start: int) -> None:
            writers[places[name]].write(written[name], arrays.dtype(piece), arrays.raw(piece), start)

        _engine(report, arrays).run(
            sorted(report.schedule.jobs, key=lambda job: order[places[job.name], written[job.name]]),
            write,
            {name: dtype for name, (dtype, _) in layout.items()},
            means.workers,
        )
    for place, writer in writers.items():
        known |= {f"{place}/{name}".lstrip("/"): digest for name, digest in writer.hashes.items()}
    return known


def _planned(job: Job, report: Report) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of a tensor as it will be written."""
    model, name = job.sources[0]
    stored = report.checkpoints[model].tensors[name]
    dtype, shape = _written(report.recipe, stored)
    if report.vocabulary is not None and job.name in _row_names(report):
        shape = (report.vocabulary.size, *stored.shape[1:])
    return dtype, shape


def _row_names(report: Report) -> frozenset[str]:
    """Return the canonical names of the tensors of any model that have one row per token."""
    return frozenset().union(*map(vocabulary_names, report.checkpoints))


def _written(recipe: Recipe, stored: StoredTensor) -> tuple[str, tuple[int, ...]]:
    """Return the dtype, in safetensors' letters, and the shape: its own dtype unless another was asked for."""
    own = stored.is_integer or recipe.out_dtype is None
    return stored.own_dtype if own else LETTERS[str(recipe.out_dtype)], stored.shape


def _engine(report: Report, arrays: Arrays) -> Engine:
    """Return the engine over all models, each read in the reference's basis."""
    bases, recipe = report.bases, report.recipe
    dtype = None if recipe.dtype is None else LETTERS[recipe.dtype]
    models = tuple(
        _input(
            arrays,
            checkpoint,
            transform,
            bases.spec_of(k),
            {kind: found[k] for kind, found in report.statistics.items()},
            dtype,
        )
        for k, (checkpoint, transform) in enumerate(zip(report.checkpoints, bases.transforms, strict=True))
    )
    base = None
    if report.base is not None:
        base = _input(arrays, report.base, bases.base_transform, bases.spec_of(0), {}, dtype)
    rows = None
    if report.vocabulary is not None:
        rows = CommonRows(_row_names(report), report.vocabulary.rows)
    return Engine(models, base, rows, dtype, recipe.seed, arrays)


def _input(
    arrays: Arrays,
    checkpoint: Checkpoint,
    transform: Transform | None,
    spec: PermutationSpec | None,
    statistics: Mapping[str, Statistics],
    dtype: str | None,
) -> Input:
    """Return one model as the engine reads it: in the reference's basis, tensor by tensor.

    Args:
        dtype: of the arithmetic, as the engine takes it.
    """

    def tensor(name: str) -> Array:
        if arrays is NUMPY:
            return checkpoint.array(name)
        if transform is None or spec is None:
            return checkpoint.tensor(name)
        import torch

        from merge.symmetry.transform import apply_transform_axes

        stored: Tensor = checkpoint.tensor(name)
        if transform.maps and stored.is_floating_point():
            # A map rounds what it acts on: no more than the arithmetic that follows does.
            stored = stored.to(torch.promote_types(stored.dtype, torch_dtype(dtype or "F32")))
        return apply_transform_axes(spec.axes(name), transform, stored)

    def measured(kind: str, name: str) -> Tensor | None:
        from merge.methods.statistics.measure import statistics_at

        return next(iter(statistics_at((statistics[kind],), name)), None)

    return Input(checkpoint.source, tensor, checkpoint.fingerprint, measured)


# What moved the reference, where both ends were asked to move.
REFERENCE_FILE = "reference-transform.safetensors"


def save_alignment(folder: Path, report: Report) -> None:
    """Write what moved each model's units, for --apply, and the plot of how alike those are that it matched."""
    records = [aligned.to_json() for aligned in report.bases.aligned]
    records = [record for record in records if record.get("quality", {}).get("axes")]
    if records:
        from merge.publish.alignment_plot import save_alignment_plot

        save_alignment_plot(folder, records)
    moved, entry = report.bases.aligned, report.recipe.align
    if all(one.transform.is_identity and one.reference_transform is None for one in moved):
        return
    from merge.symmetry.transform_files import save_transform

    canonical = keeps_canonical(entry)
    for one in moved:
        beside = None if one.reference_transform is None else REFERENCE_FILE
        save_transform(one.spec, one.transform, folder / _name(report, one.model), beside, canonical)
        if one.reference_transform is not None:
            save_transform(one.spec, one.reference_transform, folder / REFERENCE_FILE, canonical=canonical)


def _name(report: Report, model: int) -> str:
    """Return the name of the file that says how a model moved, by its place in the run; the base's is behind them all."""
    if model == len(report.checkpoints):
        return "transform-base.safetensors"
    return "transform.safetensors" if len(report.checkpoints) <= 2 else f"transform-{model}.safetensors"


def copy_files(folder: Path, report: Report, owner: Checkpoint) -> None:
    """Copy a model's side files; the tokenizer is the one whose vocabulary the result has."""
    vocabulary = report.vocabulary
    if vocabulary is None:
        copy_side_files(owner.folder, owner.side_files, folder)
        return
    everyone = [*report.checkpoints, *([] if report.base is None else [report.base])]
    own = set(tokenizer_names(owner.folder))
    copy_side_files(owner.folder, tuple(name for name in owner.side_files if name not in own), folder)
    write_tokenizer(vocabulary, everyone[vocabulary.chosen].folder, folder)
