"""Files of the output beside its weights: what was copied from a model, and what alignment found."""

from __future__ import annotations

from pathlib import Path

from merge.alignment.choice.requested import keeps_canonical
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.tokenizers.tokenizer import tokenizer_names
from merge.checkpoints.tokenizers.vocabulary import write_tokenizer
from merge.disk.staging import copy_side_files
from merge.run.manifest import Report

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
