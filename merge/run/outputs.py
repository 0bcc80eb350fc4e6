"""Write the merged checkpoint folders: weights tensor by tensor, config, tokenizer, recipe, transforms, card, manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.alignment.applied import keeps_canonical
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.modules import is_module_tensor
from merge.checkpoints.names.canonical import expected_names
from merge.checkpoints.reload_check import reload_check
from merge.checkpoints.tokenizers.files import tokenizer_names
from merge.checkpoints.tokenizers.vocabulary import config_changes, write_tokenizer
from merge.checkpoints.weights.arrays import (
    DTYPES,
    NUMPY,
    Array,
    Arrays,
    TorchArrays,
    fits_numpy,
    import_torch,
    torch_dtype,
)
from merge.checkpoints.weights.read import StoredTensor, nbytes
from merge.checkpoints.weights.write import open_writer
from merge.disk.staging import copy_side_files, write_json
from merge.progress import begin_phase
from merge.publish.card import write_card
from merge.recipe.recipe import Recipe
from merge.run.engine.engine import Engine
from merge.run.engine.job import CommonRows, Input, Job
from merge.run.manifest import manifest, report_facts
from merge.run.options import RunOptions
from merge.run.plan.extra_tensors import droppable_tensors
from merge.run.plan.heads import Output
from merge.run.plan.merge_plan import MergePlan
from merge.run.plan.output_config import merged_config
from merge.run.plan.schedule import make_schedule
from merge.run.plan.vocabulary import vocabulary_names
from merge.run.repair.step import repair_written
from merge.run.report import Report

if TYPE_CHECKING:
    from torch import Tensor

    from merge.methods.statistics.record import Statistics
    from merge.symmetry.spec import PermutationSpec
    from merge.symmetry.transform import Transform

LETTERS = {name: letters for letters, name in DTYPES.items()}  # torch's name of a dtype -> safetensors'


def numpy_suffices(recipe: Recipe, plan: MergePlan, options: RunOptions) -> bool:
    """Return whether numpy can do all of this run's arithmetic, as far as the recipe and the headers show."""
    as_stored = not recipe.align.moves and recipe.tokenizer is None and options.device == "cpu"
    models = plan.models.all
    read = [tensor for checkpoint in models for tensor in checkpoint.tensors.values()]
    sources = [job.sources[0] for job in plan.schedule.jobs]
    written = [_written(recipe, models[model].tensors[name]) for model, name in sources]
    return as_stored and plan.schedule.arithmetic and fits_numpy(read, written)


def _arrays(report: Report, options: RunOptions) -> Arrays:
    """Return numpy's arrays where nothing of the run needs torch, else torch's; both write the same bytes."""
    moved = any(t is not None for t in (*report.rebased.transforms, report.rebased.base_transform))
    if not moved and numpy_suffices(report.recipe, report.plan, options):
        return NUMPY
    import_torch()
    return TorchArrays(options.device)


def write_outputs(folder: Path, report: Report, options: RunOptions, inputs_hashed: Sequence[Future[Any]]) -> Report:
    """Write every folder of a merge, and return the report with the notes on them.

    Args:
        inputs_hashed: ends when the weights of the inputs are hashed, which the manifest states.
    """
    total, plan = 0, report.plan
    for k, output in enumerate(plan.heads.outputs):
        schedule = plan.schedule if k == 0 else make_schedule(report.recipe, plan.heads, k)
        (folder / output.folder).mkdir(exist_ok=True)
        planned = dataclasses.replace(report, plan=dataclasses.replace(plan, schedule=schedule))
        done = _write_output(folder / output.folder, planned, output, options, inputs_hashed)
        total += done.bytes
        notes = tuple(dict.fromkeys((*report.notes, *done.notes)))
        report = dataclasses.replace(report, notes=notes, repair=done.repair)
    return dataclasses.replace(report, bytes=total)


def _write_output(
    folder: Path, report: Report, output: Output, options: RunOptions, inputs_hashed: Sequence[Future[Any]]
) -> Report:
    """Write one merged checkpoint, check that it loads, and return the report with the notes on it."""
    owner, recipe, plan = output.owner, report.recipe, report.plan
    layout = {job.name: _planned(job, report) for job in plan.schedule.jobs}
    hashes = _write_weights(folder, report, owner, layout, options)
    config = merged_config(report.models if recipe.heads is None else (owner,), recipe.out_dtype, plan.schedule.plan)
    if plan.vocabulary is not None:
        model = next(k for k, checkpoint in enumerate(report.models) if checkpoint.source == owner.source)
        config = {**config, **config_changes(plan.vocabulary, config, model)}
    write_json(folder / "config.json", config)
    copy_files(folder, report, owner)
    (folder / "recipe.yaml").write_text(
        f"# merge-models --recipe recipe.yaml\n{recipe.to_yaml()}", encoding="utf-8", newline="\n"
    )
    begin_phase("writing transforms and the plot")
    save_alignment(folder, report)
    if recipe.align.repair:
        report, repaired = repair_written(folder, report, _engine(report, _arrays(report, options)))
        hashes |= repaired
    begin_phase("checking that the result loads")
    # The layout of an aligned model does not show that its tensors were moved.
    known = expected_names(owner.structure)
    extra = [owner.written_name(name) for name in owner.encoder.tensors if name not in known]
    notes = reload_check(folder, config, owner.folder, options.recheck or recipe.align.moves, extra)
    begin_phase("waiting for the hashes of the inputs")
    for hashed in inputs_hashed:
        hashed.result()
    size = sum(nbytes(dtype, shape) for dtype, shape in layout.values())
    report = dataclasses.replace(report, bytes=size, notes=(*report.notes, *notes))
    facts = report_facts(report, output)
    write_card(folder, facts)
    write_json(folder / "merge.json", manifest(facts, recipe.seed, folder, hashes))
    return report


def _write_weights(
    folder: Path,
    report: Report,
    owner: Checkpoint,
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    options: RunOptions,
) -> dict[str, str]:
    """Merge and write every tensor: the model's into the folder, each module's into its own; return the files' hashes."""
    subfolders = {name: name.rpartition("/")[0] if is_module_tensor(name) else "" for name in layout}
    written = {name: name.rpartition("/")[2] if sub else owner.written_name(name) for name, sub in subfolders.items()}
    arrays, hashes = _arrays(report, options), dict[str, str]()
    with ExitStack() as stack:
        writers = {}
        for sub in dict.fromkeys(subfolders.values()):
            (folder / sub).mkdir(exist_ok=True)
            planned = {written[name]: layout[name] for name in layout if subfolders[name] == sub}
            writers[sub] = stack.enter_context(open_writer(folder / sub, planned))
        # In the order of the files, which are hashed from their beginnings on.
        order = {(sub, name): k for sub, writer in writers.items() for k, name in enumerate(writer.slots)}

        def write(name: str, piece: Array, start: int) -> None:
            writers[subfolders[name]].write(written[name], arrays.dtype(piece), arrays.raw(piece), start)

        _engine(report, arrays).run(
            sorted(report.plan.schedule.jobs, key=lambda job: order[subfolders[job.name], written[job.name]]),
            write,
            {name: dtype for name, (dtype, _) in layout.items()},
            options.workers,
        )
    for sub, writer in writers.items():
        hashes |= {f"{sub}/{name}".lstrip("/"): digest for name, digest in writer.hashes.items()}
    return hashes


def _planned(job: Job, report: Report) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of a tensor as it will be written."""
    model, name = job.sources[0]
    stored = report.models[model].tensors[name]
    dtype, shape = _written(report.recipe, stored)
    if report.plan.vocabulary is not None and job.name in _row_names(report):
        shape = (report.plan.vocabulary.size, *stored.shape[1:])
    return dtype, shape


def _row_names(report: Report) -> frozenset[str]:
    """Return the canonical names of the tensors of any model that have one row per token."""
    return frozenset().union(*map(vocabulary_names, report.models))


def _written(recipe: Recipe, stored: StoredTensor) -> tuple[str, tuple[int, ...]]:
    """Return the dtype, in safetensors' letters, and the shape of a tensor: its own dtype unless the recipe names one."""
    unchanged = stored.is_integer or recipe.out_dtype is None
    return stored.result_dtype if unchanged else LETTERS[str(recipe.out_dtype)], stored.shape


def _engine(report: Report, arrays: Arrays) -> Engine:
    """Return the engine over all models, each read in the reference's basis."""
    rebased, recipe, plan = report.rebased, report.recipe, report.plan
    dtype = None if recipe.dtype is None else LETTERS[recipe.dtype]
    models = tuple(
        _input(
            arrays,
            checkpoint,
            transform,
            rebased.spec_of(k),
            {kind: measured[k] for kind, measured in report.statistics.items()},
            dtype,
        )
        for k, (checkpoint, transform) in enumerate(zip(report.models, rebased.transforms, strict=True))
    )
    base = None
    if plan.models.base is not None:
        base = _input(arrays, plan.models.base, rebased.base_transform, rebased.spec_of(0), {}, dtype)
    rows = None
    if plan.vocabulary is not None:
        rows = CommonRows(_row_names(report), plan.vocabulary.rows)
    return Engine(models, base, rows, dtype, recipe.seed, arrays, droppable_tensors(recipe, report.models))


def _input(
    arrays: Arrays,
    checkpoint: Checkpoint,
    transform: Transform | None,
    spec: PermutationSpec | None,
    statistics: Mapping[str, Statistics],
    dtype: str | None,
) -> Input:
    """Return one model for the engine, whose tensors are read one by one and moved into the reference's basis.

    Args:
        dtype: of the arithmetic, F32 or F64; None for the default.
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
            # A map rounds its result, by no more than the arithmetic that follows.
            stored = stored.to(torch.promote_types(stored.dtype, torch_dtype(dtype or "F32")))
        return apply_transform_axes(spec.axes(name), transform, stored)

    def measured(kind: str, name: str) -> Tensor | None:
        from merge.methods.statistics.measure import statistics_at

        return next(iter(statistics_at((statistics[kind],), name)), None)

    return Input(checkpoint.source, tensor, checkpoint.fingerprint, measured)


# The transform of the reference, where both endpoints move.
REFERENCE_FILE = "reference-transform.safetensors"


def save_alignment(folder: Path, report: Report) -> None:
    """Write the transform of each model, for --apply, and the plot of how alike the matched units are."""
    records = [aligned.to_json() for aligned in report.rebased.aligned]
    records = [record for record in records if record.get("quality", {}).get("axes")]
    if records:
        from merge.publish.alignment_plot import save_alignment_plot

        save_alignment_plot(folder, records)
    aligned = report.rebased.aligned
    if all(each.transform.is_identity and each.reference_transform is None for each in aligned):
        return
    from merge.symmetry.transform_files import save_transform

    canonical = keeps_canonical(report.recipe.align)
    for each in aligned:
        beside = None if each.reference_transform is None else REFERENCE_FILE
        save_transform(each.spec, each.transform, folder / _file_name(report, each.model), beside, canonical)
        if each.reference_transform is not None:
            save_transform(each.spec, each.reference_transform, folder / REFERENCE_FILE, canonical=canonical)


def _file_name(report: Report, model: int) -> str:
    """Return the name of the file with a model's transform, by the model's number; the base comes after all models."""
    if model == len(report.models):
        return "transform-base.safetensors"
    return "transform.safetensors" if len(report.models) <= 2 else f"transform-{model}.safetensors"


def copy_files(folder: Path, report: Report, owner: Checkpoint) -> None:
    """Copy a model's side files; the tokenizer is the one whose vocabulary the result has."""
    vocabulary = report.plan.vocabulary
    if vocabulary is None:
        copy_side_files(owner.folder, owner.side_files, folder)
        return
    tokenizer_files = set(tokenizer_names(owner.folder))
    copy_side_files(owner.folder, tuple(name for name in owner.side_files if name not in tokenizer_files), folder)
    write_tokenizer(vocabulary, report.plan.models.all[vocabulary.chosen].folder, folder)
