"""The report of a run as text for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merge.alignment.align import Aligned
    from merge.run.report import Report


def report_text(report: Report, dry_run: bool) -> str:
    """Return the report of a run as text for the terminal."""

    lines = []
    for aligned in report.rebased.aligned:
        lines += aligned_text(aligned)
    if report.rebased.calibration:
        lines.append(f"calibration text: {report.rebased.calibration}")
    outcome = (
        "nothing written (dry run)"
        if dry_run
        else f"wrote {report.recipe.output} ({report.bytes:,} bytes), which reloads{_without_pooler(report)}"
    )
    names, done = ", ".join(c.source for c in report.models), "would merge" if dry_run else "merged"
    count = len(report.plan.schedule.jobs)
    lines.append(f"{done} {names} by {report.recipe.method}: {count} tensors, {outcome}; {report.seconds:.1f} s")
    return "\n".join(lines)


def _without_pooler(report: Report) -> str:
    from merge.checkpoints.reload_check import WITHOUT_POOLER

    lacks = any(note.startswith(WITHOUT_POOLER) for note in report.notes)
    return " but for its pooler, which the models lack" if lacks else ""


def aligned_text(aligned: Aligned) -> list[str]:
    """Return the lines of the report on one aligned model."""
    choice, kept = aligned.choice, aligned.choice.kept
    to = "" if aligned.reference == aligned.source else f" to {aligned.reference}"
    lines = [f"aligned {aligned.source}{to} by {aligned.by}"]
    if choice.common:
        return [*lines, f"  {choice.start}"]
    if choice.score:
        head, *body = choice.table()
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        for row, candidate in zip((head, *body), (None, *choice.candidates), strict=True):
            cells = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            lines.append(f"  {cells}  <- kept" if candidate is kept else f"  {cells}".rstrip())
    else:
        lines.append(f"  axes that move: {kept.name} (not scored)")
    objective = kept.alignment.objective
    if objective:
        unit = "mean correlation of matched units" if kept.by == "activations" else "objective per sweep"
        lines.append(f"  {unit}: {' -> '.join(f'{value:.4g}' for value in objective)}")
    moved = ", ".join(f"{kind} {m} of {n}" for kind, (m, n) in aligned.moved.items())
    proof = aligned.proof
    lines.append(f"  units that moved: {moved}")
    lines += [f"  {line}" for line in (aligned.quality.table() if aligned.quality else ())]
    lines.append(
        f"  proof: moving the units of {aligned.source} changed its {', '.join(proof.outputs)} by {proof.error:.1e} standard "
        f"deviations (bound {proof.bound:g}, {proof.dtype}, {proof.texts} inputs)"
    )
    if aligned.transform.is_identity and choice.score:
        lines.append(
            "  nothing moves: at the midpoint, no candidate is closer to the ensemble of both models than no alignment"
        )
    elif aligned.transform.is_identity:
        lines.append("  nothing had to move: the models already share a basis, as models fine-tuned from one start do")
    return lines
