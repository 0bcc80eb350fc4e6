"""Edit the layers of one checkpoint: drop, reorder, repeat. Tensors are copied byte for byte."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.modules import is_module_tensor
from merge.checkpoints.names.canonical import expected_names, lacking_weights
from merge.checkpoints.reload_check import reload_check
from merge.checkpoints.sentence_transformers import check_edited
from merge.checkpoints.weights.write import write_weights
from merge.disk.hashes import file_hash
from merge.disk.staging import copy_side_files, output_notes, staged, write_json
from merge.disk.versions import installed_version
from merge.errors import CheckpointError, OutputError, UsageError, some
from merge.layers.plans.numbers import format_layers
from merge.layers.plans.plan import LayerPlan, PlannedTensors, plan_notes, planned_config, planned_tensors
from merge.layers.plans.positions import dropped_layers
from merge.layers.stacks import layer_count
from merge.layers.strategies.importance import DEFAULT_TEXT, LayerImportance, measure_importance
from merge.progress import track
from merge.publish.card import PIPELINES, licence_of
from merge.text.source import TextSource

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MANIFEST = "edit.json"
FILES_SHOWN = 6  # in a note


@dataclass(frozen=True)
class EditReport:
    """The result of an edit, or in a dry run the planned result.

    Attributes:
        checkpoint: the input, with the tensors of its sentence-transformers modules.
        plan: the layers of the output.
        config: config.json of the output.
        tensors: the sources of its tensors, and the input tensors left out.
        notes: notes for the user.
        importance: the layers' importance, if the layers to drop were chosen by it.
        bytes: size of all tensors written; 0 in a dry run.
    """

    checkpoint: Checkpoint
    plan: LayerPlan
    output: Path
    config: Mapping[str, Any]
    tensors: PlannedTensors
    notes: tuple[str, ...]
    importance: LayerImportance | None
    bytes: int
    seconds: float

    @property
    def total(self) -> int:
        """The number of layers of the input."""
        return layer_count(self.checkpoint.config, self.plan.stack)

    @property
    def dropped(self) -> tuple[int, ...]:
        """The layers of the input that the output lacks."""
        kept = {layer for sources in self.plan.layers for _, layer in sources}
        return tuple(layer for layer in range(self.total) if layer not in kept)

    @property
    def changed(self) -> dict[str, list[Any]]:
        """Config key -> [before, after]; None where the key is missing."""
        before, after = self.checkpoint.config, self.config
        keys = [*before, *(key for key in after if key not in before)]
        return {k: [before.get(k), after.get(k)] for k in keys if before.get(k) != after.get(k)}


def drop_plan(
    checkpoint: Checkpoint,
    strategy: str,
    count: int,
    source: TextSource = DEFAULT_TEXT,
    stack: str = "",
) -> tuple[LayerPlan, LayerImportance | None]:
    """Return the plan that drops `count` layers by a strategy, and the layers' importance if the strategy measures it.

    Raises:
        UsageError: the strategy is unknown or cannot drop that many.
        CalibrationError: the text cannot be read.
    """
    total = layer_count(checkpoint.config, stack)
    if strategy != "contribution":
        return LayerPlan.drop(strategy, count, total, stack=stack), None
    dropped_layers(strategy, count, total, [0.0] * total)  # checks the count before the measurement
    importance = measure_importance(checkpoint.encoder, source, stack)
    return LayerPlan.drop(strategy, count, total, importance.scores, stack), importance


def edit_layers(
    checkpoint: Checkpoint,
    plan: LayerPlan,
    output: Path,
    force: bool = False,
    dry_run: bool = False,
    importance: LayerImportance | None = None,
) -> EditReport:
    """Write a checkpoint with the layers of a plan and check that it loads; with `dry_run` only return the report.

    The modules of a sentence-transformers folder are copied unchanged.

    Raises:
        MergeError: a subclass for every error in plan, input or output; no incomplete output is left.
    """
    begun = time.monotonic()
    checkpoint, extra = checkpoint.with_extra(), list(checkpoint.extra)
    merged = [index for index, sources in enumerate(plan.layers) if len(sources) > 1]
    if merged:
        raise UsageError(
            f"layer {merged[0]} of the plan merges several layers, but edit-layers only copies. Use merge-models."
        )
    output_faults = output_notes(output, force, [checkpoint.folder], dry_run)
    check_edited(checkpoint)
    config = planned_config(checkpoint.config, plan)
    tensors = _planned(checkpoint, plan)
    lacking = lacking_weights(checkpoint.structure, checkpoint.tensors)
    if lacking and not any(stored.converted for stored in checkpoint.tensors.values()):
        raise CheckpointError(
            f"{checkpoint.source} lacks {len(lacking)} weights of its class {checkpoint.architecture}: {some(lacking)}. "
            "Save the whole model again with save_pretrained."
        )
    notes = (
        *output_faults,
        *checkpoint.notes,
        *plan_notes(checkpoint.config, plan),
        *(importance.notes if importance else ()),
    )
    if extra:
        notes = (*notes, f"copied, though {checkpoint.architecture} does not have them: {some(extra)}")
    if not_copied := checkpoint.left_behind:
        notes = (*notes, f"not copied from {checkpoint.source}: {some(not_copied, FILES_SHOWN)}")
    report = EditReport(checkpoint, plan, output, config, tensors, notes, importance, 0, 0.0)
    _check_space(report)
    if not dry_run:
        with staged(output, force) as folder:
            report = _write(folder, report)
    return replace(report, seconds=time.monotonic() - begun)


def _planned(checkpoint: Checkpoint, plan: LayerPlan) -> PlannedTensors:
    """Return the sources of the output's tensors: the model's by the plan, those of modules unchanged."""
    planned = planned_tensors(checkpoint.config, checkpoint.encoder.shapes, plan)
    modules = {name: ((0, name),) for name in checkpoint.tensors if is_module_tensor(name)}
    return replace(planned, sources={**planned.sources, **modules})


def _write(folder: Path, report: EditReport) -> EditReport:
    """Write all files of the edited checkpoint, and check that it loads."""
    checkpoint = report.checkpoint
    total = _copy_tensors(folder, report)
    write_json(folder / "config.json", report.config)
    copy_side_files(checkpoint.folder, checkpoint.side_files, folder)
    known = expected_names(checkpoint.structure)
    extra = [
        checkpoint.written_name(name)
        for name, ((_, source),) in report.tensors.sources.items()
        if source not in known and not is_module_tensor(name)
    ]
    notes = reload_check(folder, report.config, checkpoint.folder, extra=extra)
    report = replace(report, bytes=total, notes=(*report.notes, *notes))
    (folder / "README.md").write_text(card(report), encoding="utf-8", newline="\n")
    write_json(folder / MANIFEST, manifest(report, folder))
    return report


def _copy_tensors(folder: Path, report: EditReport) -> int:
    """Write all tensors, each module's into its own folder, and return their size in bytes."""
    from safetensors.torch import _TYPES

    checkpoint, folders = report.checkpoint, dict[str, dict[str, str]]()
    for name, ((_, source),) in report.tensors.sources.items():
        module, _, written = name.rpartition("/") if is_module_tensor(name) else ("", "", checkpoint.written_name(name))
        folders.setdefault(module, {})[written] = source
    ticks, total = iter(track(list(report.tensors.sources), "copying tensors")), 0
    for module, sources in folders.items():
        layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            written: (_TYPES[checkpoint.tensors[name].dtype], checkpoint.tensors[name].shape)
            for written, name in sources.items()
        }

        def tensor_of(written: str, sources: Mapping[str, str] = sources) -> Tensor:
            next(ticks)
            return checkpoint.tensor(sources[written])

        (folder / module).mkdir(parents=True, exist_ok=True)
        total += write_weights(folder / module, layout, tensor_of)
    next(ticks, None)
    return total


def edit_facts(report: EditReport) -> dict[str, Any]:
    """Return the facts of an edit for manifest and terminal; without times, so that equal edits give equal bytes."""
    checkpoint = report.checkpoint
    return {
        "architecture": checkpoint.architecture,
        "model_type": checkpoint.model_type,
        "models": [
            {
                "source": checkpoint.source,
                "commit": checkpoint.commit,
                "content_hash": checkpoint.encoder.content_hash,
                "files": checkpoint.weight_hashes,
            }
        ],
        "stack": report.plan.stack or None,
        "layers_before": report.total,
        "layers": report.plan.to_json(),
        "dropped": list(report.dropped),
        "contribution": asdict(report.importance) if report.importance else None,
        "config": report.changed,
        "left_out": [name for _, name in report.tensors.left_out],
        "notes": list(report.notes),
    }


def manifest(report: EditReport, folder: Path) -> dict[str, Any]:
    """Return edit.json: the hash of the input, the sources of the layers, and the hash of every file written."""
    packages = ("merge-models", "torch", "transformers", "safetensors")
    versions = {name: installed_version(name) for name in packages}
    files = {p.relative_to(folder).as_posix(): file_hash(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    return {"format": 1, **edit_facts(report), "versions": versions, "files": files}


def card(report: EditReport) -> str:
    """Return README.md of the output: the base model if it is a Hub id, the input's licence, and the layers."""
    import yaml

    checkpoint = report.checkpoint
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["merge-models"]}
    if licence := licence_of(checkpoint.folder / "README.md"):
        front["license"] = licence
    if checkpoint.commit:
        front["base_model"] = [checkpoint.source]
    pipeline = next((p for ending, p in PIPELINES.items() if checkpoint.architecture.endswith(ending)), None)
    if pipeline:
        front["pipeline_tag"] = pipeline
    kept = format_layers([layer for ((_, layer),) in report.plan.layers])
    lines = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {report.output.name}",
        f"{len(report.plan.layers)} layers of the {report.total} of {checkpoint.source}, in this order and counted from "
        f"0: {kept}. Made with `edit-layers` of merge-models; tensors were copied byte for byte, without training.",
        f"Input: {checkpoint.source}, commit {checkpoint.commit or 'none (local)'}, SHA-256 of its content "
        f"`{checkpoint.encoder.content_hash[:16]}`. Files, versions and hashes: `{MANIFEST}`.",
    ]
    if report.notes:
        lines.append("\n".join(["## Notes", "", *(f"- {note}" for note in report.notes)]))
    return "\n\n".join(lines) + "\n"


def _check_space(report: EditReport) -> None:
    tensors = report.checkpoint.tensors
    need = sum(tensors[name].nbytes for ((_, name),) in report.tensors.sources.values())
    parent = next(folder for folder in report.output.resolve().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if need > free:
        raise OutputError(
            f"the disk of {report.output} has {free / 1e9:.1f} GB free, but this needs {need / 1e9:.1f} GB."
        )
