"""The facts of a run, as the manifest and the card state them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import merge
from merge.checkpoints.checkpoint import Checkpoint
from merge.disk.hashes import file_hash
from merge.disk.versions import installed_version
from merge.publish.card import licence_of
from merge.run.plan.heads import Output
from merge.run.report import Report


def report_facts(report: Report, output: Output | None = None) -> dict[str, Any]:
    """Return what the manifest and the card state: no times, no machine, so the same run gives the same bytes.

    Args:
        output: the folder that they are of; the first when None.
    """
    outputs = report.plan.heads.outputs
    shown, applied = output or outputs[0], report.recipe.align.apply
    return {
        "name": (Path(report.recipe.output) / (output.folder if output else "")).name,
        **({"outputs": [each.folder for each in outputs]} if len(outputs) > 1 or outputs[0].folder else {}),
        "recipe": report.recipe.model_dump(mode="json", exclude_defaults=True),
        "recipe_yaml": report.recipe.to_yaml(),
        "method": report.recipe.method,
        "architecture": shown.owner.architecture,
        "model_type": shown.owner.model_type,
        "models": [_identity(checkpoint) for checkpoint in report.inputs.models],
        "base": None if report.inputs.base is None else _identity(report.inputs.base),
        "layers": None if report.plan.schedule.plan is None else report.plan.schedule.plan.to_json(),
        "licences": [licence_of(c.folder / "README.md") for c in report.inputs.models],
        "alignment": [a.to_json() for a in report.rebased.aligned],
        **({} if applied is None else {"applied": {path: file_hash(Path(path).expanduser()) for path in applied}}),
        "calibration": report.rebased.calibration,
        **({} if report.repair is None else {"repair": dict(report.repair)}),
        "statistics": {kind: [each.to_json() for each in measured] for kind, measured in report.statistics.items()},
        "notes": list(report.notes),
    }


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what identifies an input: its source, and its content by hash."""
    return {
        "source": checkpoint.source,
        "commit": checkpoint.commit,
        "content_hash": checkpoint.encoder.content_hash,
        "files": checkpoint.weight_hashes,
    }


def manifest(facts: Mapping[str, Any], seed: int, folder: Path, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Return merge.json: inputs by hash, versions, alignment with its proof, and the hash of every file written.

    Args:
        facts: from `report_facts`.
        hashes: of the files that were hashed while they were written.
    """
    versions = {
        "merge-models": merge.__version__,
        "python": platform.python_version(),
        **{name: installed_version(name) for name in ("torch", "transformers", "safetensors")},
    }
    names = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    files = {name: hashes.get(name) or file_hash(path) for name, path in names.items()}
    stated = {key: value for key, value in facts.items() if key != "recipe_yaml"}
    return {"format": 1, **stated, "versions": versions, "seed": seed, "files": files}
