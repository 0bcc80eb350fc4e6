"""The run: from a recipe to a merged checkpoint, in one pass from top to bottom."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import merge
from merge.bases import Bases, find_bases, finite
from merge.card import licence_of, write_card
from merge.checkpoint import Checkpoint, file_hash, open_checkpoint
from merge.errors import MismatchError
from merge.methods import Method, make_method
from merge.preflight import merged_config, preflight
from merge.progress import Progress, silent
from merge.recipe import Recipe
from merge.weight_files import StoredTensor
from merge.writer import check_output, copy_side_files, reload_check, staged, write_json, write_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Report:
    """What a run did: printed, and the source of manifest and card."""

    recipe: Recipe
    checkpoints: tuple[Checkpoint, ...]
    bases: Bases
    notes: tuple[str, ...]
    tensors: int
    bytes: int
    seconds: float


def run(recipe: Recipe, force: bool = False, dry_run: bool = False, progress: Progress = silent) -> Report:
    """Merge what the recipe says and write it to its output folder.

    With `dry_run` everything up to and including alignment and its proof is done, and nothing is written.

    Raises:
        MergeError: a child of it for every fault of input or output; nothing is left half written.
    """
    begun = time.monotonic()
    method = make_method(recipe.method, recipe.settings, [m.weight for m in recipe.models])
    checkpoints = tuple(open_checkpoint(m.model, m.revision) for m in recipe.models)
    output = Path(recipe.output).expanduser()
    check_output(output, force, [c.folder for c in checkpoints])
    notes = preflight(checkpoints, recipe.dtype, output)
    if left := checkpoints[0].left_behind:
        notes = (*notes, f"not copied from {checkpoints[0].source}: {', '.join(left)}")
    bases = find_bases(recipe, checkpoints, progress)
    report = Report(recipe, checkpoints, bases, (*notes, *bases.notes), len(checkpoints[0].tensors), 0, 0.0)
    if dry_run:
        return dataclasses.replace(report, seconds=time.monotonic() - begun)
    with staged(output) as folder:
        report = _write(folder, report, method, progress)
    return dataclasses.replace(report, seconds=time.monotonic() - begun)


def _write(folder: Path, report: Report, method: Method, progress: Progress) -> Report:
    """Write everything a merged checkpoint is made of, check that it loads, and return the report with what that said."""
    from merge.permutation import save

    reference, recipe, permutations = report.checkpoints[0], report.recipe, report.bases.permutations
    canonical = {reference.written_name(name): name for name in reference.tensors}
    layout = {written: _planned(reference.tensors[name], recipe.dtype) for written, name in canonical.items()}
    merge_one = _merger(report.checkpoints, method, report.bases)
    ticks = iter(progress(list(layout), "merging tensors"))

    def tensor_of(written: str) -> Tensor:
        next(ticks)
        return merge_one(canonical[written]).to(layout[written][0])

    total = write_weights(folder, layout, tensor_of)
    next(ticks, None)
    config = merged_config(reference, recipe.dtype)
    write_json(folder / "config.json", config)
    copy_side_files(reference.folder, reference.side_files, folder)
    (folder / "recipe.yaml").write_text(_resolved_recipe(report), encoding="utf-8")
    for k, permutation in enumerate(permutations):
        if permutation is not None and not permutation.is_identity:
            name = "permutation.safetensors" if len(permutations) == 2 else f"permutation-{k}.safetensors"
            save(permutation, folder / name)
    notes = reload_check(folder, config, reference.folder)
    report = dataclasses.replace(report, bytes=total, notes=(*report.notes, *notes))
    write_card(folder, report_facts(report))
    write_json(folder / "merge.json", manifest(report, folder))
    return report


def _planned(stored: StoredTensor, dtype: str | None) -> tuple[torch.dtype, tuple[int, ...]]:
    """Return dtype and shape of a tensor as it will be written: its own dtype unless another was asked for."""
    import torch
    from safetensors.torch import _TYPES

    own = stored.is_integer or dtype is None
    return _TYPES[stored.dtype] if own else getattr(torch, str(dtype)), stored.shape


def _merger(checkpoints: Sequence[Checkpoint], method: Method, bases: Bases) -> Callable[[str], Tensor]:
    """Return a function from a canonical name to the merged tensor; integer tensors must agree and pass through."""
    import torch

    from merge.permutation import apply_axes

    def merge_one(name: str) -> Tensor:
        tensors = []
        for checkpoint, permutation in zip(checkpoints, bases.permutations, strict=True):
            tensor = finite(checkpoint, name)
            if permutation is not None and bases.spec is not None:
                tensor = apply_axes(bases.spec.axes(name), permutation, tensor)
            tensors.append(tensor)
        if tensors[0].is_floating_point():
            widest = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
            return method([t.to(widest) for t in tensors])
        for checkpoint, tensor in zip(checkpoints, tensors, strict=True):
            if not torch.equal(tensor, tensors[0]):
                raise MismatchError(
                    f"integer tensor {name} differs between {checkpoints[0].source} and {checkpoint.source}; "
                    "integers cannot be averaged."
                )
        return tensors[0]

    return merge_one


def _resolved_recipe(report: Report) -> str:
    return f"# merge-models --recipe recipe.yaml\n{report.recipe.to_yaml()}"


def report_facts(report: Report) -> dict[str, Any]:
    """Return what the manifest and the card say of a run: no times, no machine, so the same run gives the same bytes."""
    return {
        "name": Path(report.recipe.output).name,
        "recipe": report.recipe.model_dump(mode="json", exclude_defaults=True),
        "recipe_yaml": report.recipe.to_yaml(),
        "method": report.recipe.method,
        "architecture": report.checkpoints[0].architecture,
        "model_type": report.checkpoints[0].model_type,
        "models": [
            {"source": c.source, "commit": c.commit, "content_hash": c.content_hash, "files": c.weight_hashes}
            for c in report.checkpoints
        ],
        "licences": [licence_of(c.folder / "README.md") for c in report.checkpoints],
        "alignment": [a.to_json() for a in report.bases.aligned],
        "calibration": report.bases.calibration,
        "notes": list(report.notes),
    }


def manifest(report: Report, folder: Path) -> dict[str, Any]:
    """Return merge.json: inputs by hash, versions, alignment with its proof, and the hash of every file written."""
    import safetensors
    import torch
    import transformers

    facts = {k: v for k, v in report_facts(report).items() if k != "recipe_yaml"}
    versions = {
        "merge-models": merge.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "safetensors": safetensors.__version__,
    }
    files = {p.relative_to(folder).as_posix(): file_hash(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    return {"format": 1, **facts, "versions": versions, "seed": report.recipe.seed, "files": files}
