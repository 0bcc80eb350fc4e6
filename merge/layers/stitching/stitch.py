"""Stitch two models: the bottom layers of one, a fitted map, the top layers of the other, as one standard checkpoint.

Source: Bansal, Nakkiran and Barak 2021, arXiv:2106.07682.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from merge.checkpoints.checkpoint import Checkpoint
from merge.disk.staging import output_notes
from merge.layers.edit import opened_whole, write_assembly
from merge.layers.plans.text import model_letter
from merge.layers.record import EditReport, Made
from merge.layers.stacks import layer_count
from merge.layers.stitching.fit_together import check_models, with_own_head
from merge.layers.stitching.joining import joined, planned
from merge.layers.stitching.kinds import StitchSettings
from merge.layers.stitching.layout import Layout
from merge.layers.stitching.writable import check_writable

TOOL = "stitch-models"


def stitch_models(
    a: Checkpoint,
    b: Checkpoint,
    settings: StitchSettings,
    output: Path,
    force: bool = False,
    dry_run: bool = False,
    names: Sequence[str] = (),
) -> EditReport:
    """Write the stitch of two models and check that it loads; with `dry_run` only return the report.

    Embeddings and tokenizer are those of the bottom model, class, head and sentence-transformers modules those of the top one.

    Args:
        a, b: bottom and top.
        names: of the models in the plan's text; A and B where there are none.
    Raises:
        MergeError: a subclass for every error in input or output; no incomplete output is left.
    """
    begun = time.monotonic()
    faults = output_notes(output, force, [a.folder, b.folder], dry_run)
    bottom, top = opened_whole((a, b))
    check_models(bottom, top, settings)
    top, head_notes = with_own_head(top, bottom)
    layout = Layout.of(bottom, top, settings)
    check_writable(layout)
    join = planned(layout) if dry_run else joined(layout)
    assembly = layout.assembled(join.plan, join.moved)
    if join.computed:
        assembly = assembly.with_computed(join.computed)
    k, m = settings.at
    lower = {0: "no layer", 1: "the first layer"}.get(k, f"the first {k} layers")
    parts = f"{lower} of {a.source}, then {b.source} from layer {m} on"
    sentences = (
        parts if m < layer_count(b.config) else f"{lower} of {a.source}, then the head of {b.source}",
        *join.sentences,
    )
    made = Made(
        None,
        tuple(names) or tuple(map(model_letter, range(2))),
        {"stitch": {"at": list(settings.at), "map": settings.kind, "tokens": settings.tokens, **join.facts}},
        sentences,
        (*faults, *head_notes, *join.notes),
        TOOL,
    )
    report = write_assembly(assembly, output, force, dry_run, made)
    return replace(report, seconds=time.monotonic() - begun)
