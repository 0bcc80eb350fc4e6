"""Files of the output beside its weights: what was copied from a model, and what alignment found."""

from __future__ import annotations

from pathlib import Path

from merge.checkpoint import Checkpoint
from merge.report import Report
from merge.tokenizer_files import tokenizer_names
from merge.vocabulary import write_tokenizer
from merge.writer import copy_side_files

# What moved the reference, where both ends were asked to move.
REFERENCE_FILE = "reference-transform.safetensors"


def save_alignment(folder: Path, report: Report) -> None:
    """Write what moved each model's units, for --apply, and the plot of how alike those are that it matched."""
    records = [aligned.to_json() for aligned in report.bases.aligned]
    records = [record for record in records if record.get("quality", {}).get("axes")]
    if records:
        from merge.alignment_plot import save_alignment_plot

        save_alignment_plot(folder, records)
    for aligned in report.bases.aligned:
        if aligned.transform.is_identity or aligned.model >= len(report.checkpoints):
            continue
        from merge.transform import save_transform

        name = "transform.safetensors" if len(report.checkpoints) <= 2 else f"transform-{aligned.model}.safetensors"
        beside = None if aligned.reference_transform is None else REFERENCE_FILE
        save_transform(aligned.spec, aligned.transform, folder / name, beside)
        if aligned.reference_transform is not None:
            save_transform(aligned.spec, aligned.reference_transform, folder / REFERENCE_FILE)


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
