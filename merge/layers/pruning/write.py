"""Write a pruned checkpoint: changed tensors and config, all other files as they were, a card and a manifest."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.modules import is_module_tensor
from merge.checkpoints.names.canonical import lacking_weights
from merge.checkpoints.reload_check import reload_check
from merge.checkpoints.weights.write import write_weights
from merge.disk.hashes import file_hash
from merge.disk.staging import copy_side_files, output_notes, space_fault, staged, write_json
from merge.errors import CheckpointError, OutputError, some
from merge.progress import track
from merge.publish.edited_card import edited_card

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MANIFEST = "edit.json"
FILES_SHOWN = 6  # in a note

Change = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class Pruned:
    """A pruned checkpoint, before it is written.

    Attributes:
        checkpoint: the input.
        command: that made it, for the card.
        config: config.json of the output.
        changes: canonical name -> what makes the output's tensor of the input's.
        shapes: canonical name -> shape, where it changes.
        files: side files with a new content.
        left_out: side files that the output does not have.
        facts: what was removed and why, for manifest and --json.
        lines: the same in words, for terminal and card.
        notes: for the user.
    """

    checkpoint: Checkpoint
    command: str
    config: Mapping[str, Any]
    changes: Mapping[str, Change]
    shapes: Mapping[str, tuple[int, ...]]
    facts: Mapping[str, Any]
    lines: tuple[str, ...]
    notes: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def changed(self) -> dict[str, list[Any]]:
        """Config key -> [before, after]; None where the key is missing."""
        before, after = self.checkpoint.config, self.config
        keys = [*before, *(key for key in after if key not in before)]
        return {k: [before.get(k), after.get(k)] for k in keys if before.get(k) != after.get(k)}

    @property
    def bytes(self) -> int:
        """The size of all tensors of the output."""
        tensors, total = self.checkpoint.tensors, 0
        for name, stored in tensors.items():
            size, count = stored.nbytes, 1
            for length in stored.shape:
                count *= length
            if name in self.shapes and count:
                for length in self.shapes[name]:
                    size *= length
                size //= count
            total += size
        return total


@dataclass(frozen=True)
class PruneReport:
    """The result of a pruning, or in a dry run the planned result.

    Attributes:
        pruned: what was removed.
        output: the folder.
        proof: how the output was compared, in words; None in a dry run.
        error: the largest difference of that comparison, in standard deviations of the output.
        notes: for the user.
        seconds: that it took.
    """

    pruned: Pruned
    output: Path
    proof: str | None
    error: float | None
    notes: tuple[str, ...]
    seconds: float


# Compares the written folder with what it should compute: (in words, largest difference).
Prove = Callable[[Path], tuple[str, float]]


def of_its_class(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint without the tensors that its class does not have, which a note names.

    Which of their axes hold the units that are cut is not known, and transformers ignores them.
    """
    if not (names := list(checkpoint.extra)):
        return checkpoint
    number = "is no tensor" if len(names) == 1 else "are no tensors"
    note = f"{checkpoint.source}: {some(names)} {number} of {checkpoint.architecture}: left out, as transformers does"
    return replace(checkpoint, extra={}, notes=(*checkpoint.notes, note))


def check_input(checkpoint: Checkpoint) -> None:
    """Stop where a checkpoint lacks weights of its class: they would be drawn at random.

    Raises:
        CheckpointError: it does.
    """
    lacking = lacking_weights(checkpoint.structure, checkpoint.encoder.tensors)
    if lacking and not any(stored.converted for stored in checkpoint.tensors.values()):
        raise CheckpointError(
            f"{checkpoint.source} lacks {len(lacking)} weights of its class {checkpoint.architecture}: {some(lacking)}. "
            "Save the whole model again with save_pretrained."
        )


def write_pruned(
    pruned: Pruned, output: Path, prove: Prove, bound: float, force: bool = False, dry_run: bool = False
) -> PruneReport:
    """Write a pruned checkpoint, check that it loads, and prove that it computes what it should.

    Raises:
        OutputError: the output exists, cannot be written, does not load, or differs by more than the bound; nothing
            of it is left.
    """
    begun, checkpoint = time.monotonic(), pruned.checkpoint
    faults = output_notes(output, force, [checkpoint.folder], dry_run)
    notes = [*faults, *checkpoint.notes, *pruned.notes]
    if not_copied := [*checkpoint.left_behind, *pruned.left_out]:
        notes.append(f"not copied from {checkpoint.source}: {some(not_copied, FILES_SHOWN)}")
    report = PruneReport(pruned, output, None, None, tuple(notes), 0.0)
    _check_space(pruned, output)
    if not dry_run:
        with staged(output, force) as folder:
            report = _write(folder, report, prove, bound)
    return replace(report, seconds=time.monotonic() - begun)


def _write(folder: Path, report: PruneReport, prove: Prove, bound: float) -> PruneReport:
    pruned = report.pruned
    checkpoint = pruned.checkpoint
    _write_tensors(folder, pruned)
    write_json(folder / "config.json", pruned.config)
    kept = tuple(name for name in checkpoint.side_files if name not in pruned.left_out and name not in pruned.files)
    copy_side_files(checkpoint.folder, kept, folder)
    for name, content in pruned.files.items():
        (folder / name).write_bytes(content)
    loaded = reload_check(folder, pruned.config, checkpoint.folder)
    proof, error = prove(folder)
    if not error <= bound:
        raise OutputError(
            f"the pruned model does not compute what it should: {proof} differ by {error:.2g} standard deviations (bound "
            f"{bound:g}). Nothing was written."
        )
    report = replace(report, proof=proof, error=error, notes=(*report.notes, *loaded))
    (folder / "README.md").write_text(card(report, folder), encoding="utf-8", newline="\n")
    write_json(folder / MANIFEST, manifest(report, folder))
    return report


def _write_tensors(folder: Path, pruned: Pruned) -> None:
    """Write all tensors, each module's into its own folder."""
    from safetensors.torch import _TYPES

    checkpoint, folders = pruned.checkpoint, dict[str, dict[str, str]]()
    for name in checkpoint.tensors:
        module, _, written = name.rpartition("/") if is_module_tensor(name) else ("", "", checkpoint.written_name(name))
        folders.setdefault(module, {})[written] = name
    ticks = iter(track(list(checkpoint.tensors), "writing tensors"))
    for module, sources in folders.items():
        layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            written: (_TYPES[checkpoint.tensors[name].dtype], pruned.shapes.get(name, checkpoint.tensors[name].shape))
            for written, name in sources.items()
        }

        def tensor_of(written: str, sources: Mapping[str, str] = sources) -> Tensor:
            next(ticks)
            name = sources[written]
            tensor = checkpoint.tensor(name)
            return pruned.changes[name](tensor).contiguous() if name in pruned.changes else tensor

        (folder / module).mkdir(parents=True, exist_ok=True)
        write_weights(folder / module, layout, tensor_of)
    next(ticks, None)


def prune_facts(report: PruneReport) -> dict[str, Any]:
    """Return the facts of a pruning for manifest and --json; without times, so that equal runs give equal bytes."""
    pruned = report.pruned
    checkpoint = pruned.checkpoint
    return {
        "command": pruned.command,
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
        **pruned.facts,
        "config": pruned.changed,
        "bytes": [sum(stored.nbytes for stored in checkpoint.tensors.values()), pruned.bytes],
        "proof": None if report.proof is None else {"compared": report.proof, "error": report.error},
        "notes": list(report.notes),
    }


def manifest(report: PruneReport, folder: Path) -> dict[str, Any]:
    """Return edit.json: what was removed, the hash of the input and of every file written."""
    packages = ("merge-models", "torch", "transformers", "safetensors")
    versions = {name: importlib.metadata.version(name) for name in packages}
    files = {p.relative_to(folder).as_posix(): file_hash(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    return {"format": 1, **prune_facts(report), "versions": versions, "files": files}


def card(report: PruneReport, folder: Path) -> str:
    """Return README.md of the output: what was removed of which model, and the proof."""
    checkpoint, pruned = report.pruned.checkpoint, report.pruned
    made = (
        f"{checkpoint.source}, pruned with `edit-layers {pruned.command}` of merge-models, without training.",
        "\n".join(f"- {line}" for line in pruned.lines),
        f"Proof: {report.proof} differ by at most {report.error:.2g} standard deviations.",
    )
    return edited_card(folder, made, [checkpoint], checkpoint.architecture, MANIFEST, report.notes, report.output.name)


def report_text(report: PruneReport) -> str:
    """Return the report of a pruning as text for the terminal."""
    import json

    pruned = report.pruned
    before = sum(stored.nbytes for stored in pruned.checkpoint.tensors.values())
    lines = [f"{pruned.checkpoint.source}: {pruned.lines[0]}", *(f"  {line}" for line in pruned.lines[1:])]
    lines += [
        f"  config.json: {key}: {json.dumps(old)} -> {json.dumps(new)}"
        for key, (old, new) in pruned.changed.items()
        if not isinstance(new, dict)
    ]
    if report.proof is not None:
        lines.append(f"  proof: {report.proof} differ by at most {report.error:.2g} standard deviations")
    size = f"{pruned.bytes:,} bytes" + (f", before {before:,}" if before != pruned.bytes else ", as before")
    outcome = "nothing written (dry run)" if report.proof is None else f"wrote {report.output}, which reloads"
    lines.append(f"{outcome} ({size}); {report.seconds:.1f} s")
    return "\n".join(lines)


def _check_space(pruned: Pruned, output: Path) -> None:
    if fault := space_fault(output, pruned.bytes):
        raise OutputError(fault)
