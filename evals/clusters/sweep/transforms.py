"""The transforms that bring every model into the units of one reference, kept as files: a pair then costs no alignment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evals.clusters.sweep.records import FOLDER
from evals.clusters.sweep.sweep import Sweep
from evals.paths.pair_lines import Weights, written_weights
from merge.alignment.applied import keeps_canonical
from merge.checkpoints.checkpoint import Checkpoint, finite_tensors
from merge.checkpoints.model_set import ModelSet
from merge.errors import SpecError, UsageError
from merge.symmetry.architectures import spec_for


def transform_path(sweep: Sweep, model: int) -> Path:
    """Return the file of the transform of a model."""
    return sweep.store / FOLDER / "transforms" / f"{sweep.transform_key(model)}.safetensors"


def check_one_reference(sweep: Sweep) -> None:
    """Stop where the alignment rewrites a model or moves the reference: then no basis is that of all.

    Raises:
        UsageError: names the setting.
    """
    settings = sweep.settings
    if sweep.reference is None or not settings.moves:
        return
    fault = (
        "--both moves the reference too, for each model otherwise"
        if settings.both
        else "--residual rotation rewrites both models of a pair"
        if settings.residual == "rotation"
        else "--canonical keep rewrites both models of a pair"
        if keeps_canonical(settings)
        else None
    )
    if fault:
        raise UsageError(f"{fault}. Use --align-to pair, or leave it out.")


def measure_transform(sweep: Sweep, checkpoints: Callable[[int], Checkpoint], model: int) -> None:
    """Align a model to the reference, its classes too, and store the transform.

    Raises:
        AlignmentError, CalibrationError, SpecError, MismatchError: from the alignment.
    """
    from merge.run.plan.heads import plan_heads
    from merge.run.rebase import rebase
    from merge.symmetry.transform import identity_transform
    from merge.symmetry.transform_files import save_transform

    assert sweep.reference is not None
    pair = ModelSet((checkpoints(sweep.reference), checkpoints(model)))
    rebased = rebase(sweep.settings, plan_heads(None, pair), sweep.seed)
    spec = rebased.spec or spec_for(pair.reference.config)
    transform = rebased.transforms[1] or identity_transform(spec, pair.models[1].encoder.shapes)
    path = transform_path(sweep, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_transform(spec, transform, path)


def has_transform(sweep: Sweep, checkpoints: Callable[[int], Checkpoint], model: int) -> bool:
    """Return whether the transform of a model is stored and can be used."""
    from merge.symmetry.transform_files import load_transform

    path = transform_path(sweep, model)
    if not path.is_file():
        return False
    try:
        load_transform(spec_for(checkpoints(model).config), path)
    except SpecError:
        return False
    return True


def moved_weights(sweep: Sweep, checkpoints: Callable[[int], Checkpoint], model: int) -> Weights:
    """Return the weights of a model in the units and the order of classes of the reference, float32, by their written names."""
    from merge.symmetry.transform import apply_transform
    from merge.symmetry.transform_files import load_transform

    checkpoint = checkpoints(model)
    tensors = finite_tensors(checkpoint)
    if model != sweep.reference:
        spec = spec_for(checkpoint.config)
        tensors = apply_transform(spec, load_transform(spec, transform_path(sweep, model)), tensors)
    return written_weights(checkpoint, tensors)
