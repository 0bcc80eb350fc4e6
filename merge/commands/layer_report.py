"""What edit-layers prints of an edit."""

from __future__ import annotations

import json
from collections.abc import Sequence

from merge.layers.plans.formatted import format_plan
from merge.layers.plans.numbers import format_layers
from merge.layers.record import EditReport
from merge.layers.strategies.importance import LayerImportance

SHOWN = 8  # candidates of a search


def edit_text(report: EditReport, dry_run: bool) -> str:
    """Return the report of an edit as text for the terminal."""
    plan, lines = report.plan, []
    if report.importance:
        lines += importance_lines(report.importance, report.dropped)
    if plan.copies and len(report.assembly.models) == 1:
        shown = format_layers([layer for ((_, layer),) in plan.layers])
    else:
        shown = format_plan(plan, report.made.names)
    lines.append(f"{report.checkpoint.source}: {report.total} layers -> {len(plan.layers)}: {shown}")
    if report.dropped:
        lines.append(f"  dropped: {format_layers(report.dropped)} ({len(report.tensors.left_out)} tensors left out)")
    lines += [f"  {sentence}" for sentence in report.made.sentences]
    for key, (before, after) in report.changed.items():
        lines.append(f"  config.json: {key}: {json.dumps(before)} -> {json.dumps(after)}")
    computed = len(report.tensors.sources) - report.copied
    outcome = (
        "nothing written (dry run)" if dry_run else f"wrote {report.output} ({report.bytes:,} bytes), which reloads"
    )
    done = f"{report.copied} tensors copied byte for byte{f', {computed} computed' if computed else ''}"
    lines.append(f"{done}: {outcome}; {report.seconds:.1f} s")
    return "\n".join(lines)


def importance_lines(importance: LayerImportance, dropped: Sequence[int]) -> list[str]:
    """Return what a strategy measured: the score of every layer or block, or the best candidates of a search."""
    lines = [f"{importance.strategy}, {importance.meaning}, on {importance.text}"]
    if importance.candidates:
        best = sorted(importance.candidates, key=lambda each: -each[1])[:SHOWN]
        lines[0] += f": {len(importance.candidates)} candidates"
        return [*lines, *(f"  kept {format_layers(kept):<12} {score:.4f}" for kept, score in best)]
    blocks = importance.strategy in ("angular", "linear-fit") and len(dropped) > 1
    for layer, score in enumerate(importance.scores):
        word = f"layers {layer}-{layer + len(dropped) - 1}" if blocks else f"layer {layer:<3}"
        chosen = layer == dropped[0] if blocks and dropped else layer in dropped
        lines.append(f"  {word} {score:.4f}{'  <- dropped' if chosen else ''}")
    return lines
