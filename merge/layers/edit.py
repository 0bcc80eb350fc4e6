"""Edit the layers of checkpoints: write what a plan makes of them. Copied tensors are copied byte for byte."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.modules import is_module_tensor
from merge.checkpoints.names.canonical import lacking_weights
from merge.checkpoints.reload_check import reload_check
from merge.checkpoints.sentence_transformers import check_edited
from merge.checkpoints.tokenizers.files import tokenizer_names
from merge.checkpoints.weights.write import Written, write_weights
from merge.disk.staging import copy_side_files, output_notes, space_fault, staged, write_json
from merge.errors import CheckpointError, OutputError, some
from merge.layers.assembly import Assembly, assemble
from merge.layers.plans.plan import LayerPlan, plan_notes
from merge.layers.plans.text import model_letter
from merge.layers.record import EditReport, Made, card, manifest
from merge.layers.strategies.importance import LayerImportance
from merge.progress import track

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from merge.alignment.settings import AlignEntry
    from merge.layers.repair.repair import RepairSettings

FILES_SHOWN = 6  # in a note


def edit_layers(
    checkpoint: Checkpoint | Sequence[Checkpoint],
    plan: LayerPlan,
    output: Path,
    force: bool = False,
    dry_run: bool = False,
    importance: LayerImportance | None = None,
    names: Sequence[str] = (),
    repair: RepairSettings | None = None,
    align: AlignEntry | None = None,
) -> EditReport:
    """Write a checkpoint with the layers of a plan and check that it loads; with `dry_run` only return the report.

    The modules of a sentence-transformers folder are copied unchanged.

    Args:
        checkpoint: the model, or all models of the plan.
        importance: of the layers, where they were chosen by it.
        names: of the models in the plan's text; A, B, ... where there are none.
        repair: what is fitted and healed for the layers that are missing; nothing when None.
        align: how the models are aligned to the first before their layers are taken; not at all when None.
    Raises:
        MergeError: a subclass for every error in plan, input or output; no incomplete output is left.
    """
    from merge.layers.aligned import align_models
    from merge.layers.pruning.write import of_its_class
    from merge.layers.repair.repair import RepairSettings, repaired

    begun = time.monotonic()
    models = [checkpoint] if isinstance(checkpoint, Checkpoint) else list(checkpoint)
    faults = output_notes(output, force, [model.folder for model in models], dry_run)
    aligns = align is not None and align.moves
    # An alignment moves the tensors of a class, and knows no others.
    whole = opened_whole([of_its_class(model) for model in models] if aligns else models)
    assemble(whole, plan)  # every fault that headers show comes before models are read
    aligned = None
    if align is not None and aligns:
        aligned = align_models(whole, align, 0 if repair is None else repair.text.seed)
    done = repaired(whole, plan, repair or RepairSettings(), aligned.moved if aligned else None, dry_run)
    made = Made(
        importance,
        tuple(names) or tuple(map(model_letter, range(len(models)))),
        {**({"alignment": aligned.facts} if aligned else {}), **done.facts},
        (*(aligned.sentences if aligned else ()), *done.sentences),
        (*faults, *(aligned.notes if aligned else ()), *done.notes),
    )
    report = write_assembly(done.assembly, output, force, dry_run, made)
    return replace(report, seconds=time.monotonic() - begun)


def opened_whole(models: Sequence[Checkpoint]) -> tuple[Checkpoint, ...]:
    """Return the models with all tensors of their files, checked that each can be edited.

    Raises:
        CheckpointError: a model lacks weights of its class, or has a module that reads layers by their number.
    """
    whole = tuple(model.with_extra() for model in models)
    for model in whole:
        check_edited(model)
        lacking = lacking_weights(model.structure, model.tensors)
        if lacking and not any(stored.converted for stored in model.tensors.values()):
            raise CheckpointError(
                f"{model.source} lacks {len(lacking)} weights of its class {model.architecture}: {some(lacking)}. "
                "Save the whole model again with save_pretrained."
            )
    return whole


def write_assembly(
    assembly: Assembly, output: Path, force: bool = False, dry_run: bool = False, made: Made | None = None
) -> EditReport:
    """Write an assembled model and check that it loads; with `dry_run` only return the report.

    Raises:
        MergeError: a subclass for every error in input or output; no incomplete output is left.
    """
    begun, made = time.monotonic(), made or Made()
    notes = tuple(
        dict.fromkeys((*made.notes, *_input_notes(assembly, made)))
    )  # a text is read by the choice and by a repair
    report = EditReport(assembly, output, notes, made, 0, 0.0)
    _check_space(report)
    if not dry_run:
        with staged(output, force) as folder:
            report = _write(folder, report)
    return replace(report, seconds=time.monotonic() - begun)


def _input_notes(assembly: Assembly, made: Made) -> tuple[str, ...]:
    models = assembly.models
    notes = [note for model in models for note in model.notes]
    notes += plan_notes([model.config for model in models], assembly.plan)
    notes += made.importance.notes if made.importance else ()
    if assembly.owner_extra:
        extra = sorted(assembly.owner_extra)
        notes.append(f"copied, though {assembly.owner.architecture} does not have them: {some(extra)}")
    if not_copied := assembly.owner.left_behind:
        notes.append(f"not copied from {assembly.owner.source}: {some(not_copied, FILES_SHOWN)}")
    zeros = any(making is not None and making.kind == "zero" for making in assembly.plan.makings)
    if zeros and (assembly.parts.norm_last or assembly.parts.sandwich):
        notes.append(
            f"layers of {assembly.owner.model_type} end in a norm, so a zeroed layer is not the identity: it normalises what "
            "it reads; compare the outputs (edit-layers compare) before training"
        )
    if any(m is not None and m.without for m in assembly.plan.makings) and assembly.parts.norm_last:
        notes.append(f"layers of {assembly.owner.model_type} without a sublayer keep the norm after it")
    return tuple(notes)


def _write(folder: Path, report: EditReport) -> EditReport:
    """Write all files of the edited checkpoint, and check that it loads."""
    assembly = report.assembly
    written = _write_tensors(folder, assembly)
    write_json(folder / "config.json", report.config)
    owner, embedder = assembly.owner, assembly.embedder
    of_tokenizer = tokenizer_names(owner.folder) if reads_other_tokens(embedder, owner) else ()
    copied = tuple(name for name in owner.side_files if name not in of_tokenizer)
    copy_side_files(owner.folder, copied, folder)
    if embedder.has_tokenizer and (of_tokenizer or not owner.has_tokenizer):
        copy_side_files(embedder.folder, tuple(n for n in embedder.side_files if n not in copied), folder)
    extra = [owner.written_name(name) for name in assembly.owner_extra]
    notes = reload_check(folder, report.config, owner.folder, extra=extra)
    report = replace(report, bytes=written.bytes, notes=(*report.notes, *notes))
    (folder / "README.md").write_text(card(report, folder), encoding="utf-8", newline="\n")
    write_json(folder / report.made.manifest, manifest(report, folder, written.hashes))
    return report


def reads_other_tokens(embedder: Checkpoint, owner: Checkpoint) -> bool:
    """Return whether the model whose embeddings are taken has another tokenizer than the one whose head is."""
    from merge.checkpoints.tokenizers.comparison import compare_tokenizers, tokenizer_of

    if embedder is owner:
        return False
    pair = [tokenizer_of(each.source, each.folder, each.config) for each in (embedder, owner)]
    return pair[0] is not None and pair[1] is not None and bool(compare_tokenizers(pair[0], pair[1])[0])


def _write_tensors(folder: Path, assembly: Assembly) -> Written:
    """Write all tensors, each module's into its own folder; copies are copied from file to file."""
    owner, folders = assembly.owner, dict[str, dict[str, str]]()
    for name in assembly.tensors.sources:
        module, _, written = name.rpartition("/") if is_module_tensor(name) else ("", "", owner.written_name(name))
        folders.setdefault(module, {})[written] = name
    ticks, total = iter(track(list(assembly.tensors.sources), "copying tensors")), 0
    hashes: dict[str, str] = {}
    for module, names in folders.items():
        layout = {written: _slot(assembly, name) for written, name in names.items()}

        def tensor_of(written: str, names: Mapping[str, str] = names) -> Tensor:
            return assembly.tensor(names[written])

        def copy_of(written: str, names: Mapping[str, str] = names) -> tuple[Path, int] | None:
            next(ticks)
            return _stored_bytes(assembly, names[written])

        (folder / module).mkdir(parents=True, exist_ok=True)
        done = write_weights(folder / module, layout, tensor_of, copy_of)
        total += done.bytes
        hashes |= {f"{module}/{file}" if module else file: digest for file, digest in done.hashes.items()}
    next(ticks, None)
    return Written(total, hashes)


def _stored_bytes(assembly: Assembly, name: str) -> tuple[Path, int] | None:
    """Return file and offset of an output tensor that is the copy of a tensor on the disk; None where it is not."""
    if not assembly.copied(name):
        return None
    model, source = assembly.tensors.sources[name][0]
    stored = assembly.models[model].tensors[source]
    return None if stored.offset is None else (assembly.models[model].folder / stored.file, stored.offset)


def _slot(assembly: Assembly, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
    """Return the dtype and shape of an output tensor: those of its first source."""
    from safetensors.torch import _TYPES

    model, source = assembly.tensors.sources[name][0]
    stored = assembly.models[model].tensors[source]
    return _TYPES[stored.dtype], stored.shape


def _check_space(report: EditReport) -> None:
    models = report.assembly.models
    need = sum(models[pairs[0][0]].tensors[pairs[0][1]].nbytes for pairs in report.tensors.sources.values())
    if fault := space_fault(report.output, need):
        raise OutputError(fault)
