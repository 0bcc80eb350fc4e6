"""Report: what a run did, as it is printed and as manifest and card state it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import merge
from merge.checkpoints.checkpoint import Checkpoint
from merge.disk.hashes import file_hash
from merge.publish.card import licence_of
from merge.run.plan.heads import Output, plan_heads
from merge.run.report import Report

if TYPE_CHECKING:
    pass


def report_facts(report: Report, output: Output | None = None) -> dict[str, Any]:
    """Return what the manifest and the card say of a run: no times, no machine, so the same run gives the same bytes."""
    outputs = plan_heads(report.recipe.heads, report.checkpoints, report.base).outputs
    shown, applied = output or outputs[0], report.recipe.align.apply
    return {
        "name": (Path(report.recipe.output) / (output.folder if output else "")).name,
        **({"outputs": [one.folder for one in outputs]} if len(outputs) > 1 or outputs[0].folder else {}),
        "recipe": report.asked.model_dump(mode="json", exclude_defaults=True),
        "recipe_yaml": report.asked.to_yaml(),
        "method": report.recipe.method,
        "architecture": shown.owner.architecture,
        "model_type": shown.owner.model_type,
        "models": [_identity(checkpoint) for checkpoint in report.inputs[0]],
        "base": None if report.inputs[1] is None else _identity(report.inputs[1]),
        "layers": None if report.schedule.plan is None else report.schedule.plan.to_json(),
        "licences": [licence_of(c.folder / "README.md") for c in report.inputs[0]],
        "alignment": [a.to_json() for a in report.bases.aligned],
        **({} if applied is None else {"applied": {path: file_hash(Path(path).expanduser()) for path in applied}}),
        "calibration": report.bases.calibration,
        **({} if report.repair is None else {"repair": dict(report.repair)}),
        "statistics": {kind: [s.to_json() for s in found] for kind, found in report.statistics.items()},
        "notes": list(report.notes),
    }


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what names an input: where it was, and its content by hash."""
    return {
        "source": checkpoint.source,
        "commit": checkpoint.commit,
        "content_hash": checkpoint.encoder.content_hash,
        "files": checkpoint.weight_hashes,
    }


def manifest(facts: Mapping[str, Any], seed: int, folder: Path, known: Mapping[str, str]) -> dict[str, Any]:
    """Return merge.json: inputs by hash, versions, alignment with its proof, and the hash of every file written.

    Args:
        facts: what `report_facts` says.
        known: hashes of files that were taken while they were written.
    """
    versions = {
        "merge-models": merge.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "safetensors")},
    }
    names = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    files = {name: known.get(name) or file_hash(path) for name, path in names.items()}
    said = {key: value for key, value in facts.items() if key != "recipe_yaml"}
    return {"format": 1, **said, "versions": versions, "seed": seed, "files": files}
