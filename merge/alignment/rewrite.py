"""Rewrite models before alignment without changing their function, as checkpoints in a temporary folder.

`rewritten` folds the gains of norms and keeps canonical weights: the engine reads tensors as they are stored, so these are
stored again, beside the output, until the run ends. `resized` is the exception: it changes a model's function, as transport
carries a model of other widths into the reference's approximately.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.alignment.applied import keeps_canonical, rotates_stream
from merge.alignment.choice.requested import Choices
from merge.alignment.settings import AlignEntry
from merge.checkpoints.checkpoint import Checkpoint, absent_pooler, finite_tensors
from merge.checkpoints.model_set import ModelSet
from merge.checkpoints.modules import is_module_tensor
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.weights.write import open_writer
from merge.disk.staging import copy_side_files, write_json
from merge.errors import AlignmentError
from merge.symmetry.architectures import spec_for

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rewritten:
    """Models and base as they are aligned and merged, under the names that the user gave, and notes on the rewriting."""

    models: ModelSet
    notes: tuple[str, ...] = ()


@contextmanager
def rewritten(
    settings: AlignEntry, given: ModelSet, beside: Path, choices: Choices | None = None
) -> Iterator[Rewritten]:
    """Yield the models as the alignment needs them: norms folded for a rotation, canonical weights where they are kept.

    Where neither is asked for, the models are yielded as they were given. Where a transform of an earlier run is applied,
    the header of its file states the rewrites.

    Args:
        beside: a path whose nearest existing parent takes the temporary folder.
        choices: what auto chose; it may be a rotation of the residual stream.
    Raises:
        SpecError: the norms of this architecture cannot be folded.
        CheckpointError: a tensor holds NaN or infinity.
        AlignmentError: the outputs of a rewritten model are not those of the model.
    """
    rotated = _states_rotation(settings, given) or (choices is not None and choices.rotated)
    rewrites = Rewrites(rotated, settings.moves and keeps_canonical(settings))
    if not rewrites.folds_norms and not rewrites.keeps_canonical:
        yield Rewritten(given)
        return
    with _temporary_folder(".prepared-", beside) as folder:
        notes: dict[str, None] = {}
        checkpoints = [_rewritten(c, rewrites, folder / str(k), notes) for k, c in enumerate(given.all)]
        count = len(given.models)
        models = ModelSet(tuple(checkpoints[:count]), None if given.base is None else checkpoints[count])
        yield Rewritten(models, tuple(notes))


@dataclass(frozen=True)
class Rewrites:
    """Which rewrites models need before they are aligned."""

    folds_norms: bool
    keeps_canonical: bool


def _states_rotation(settings: AlignEntry, given: ModelSet) -> bool:
    if settings.apply is None:
        return settings.residual == "rotation"
    return rotates_stream(settings, spec_for(given.reference.encoder.config))


@contextmanager
def _temporary_folder(prefix: str, beside: Path) -> Iterator[Path]:
    parent = next(folder for folder in beside.expanduser().resolve().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder:
        yield Path(folder)


# The config entries that name the width of the feed-forward layers.
WIDTHS = frozenset({"intermediate_size", "hidden_dim", "n_inner", "ffn_dim", "d_ff", "encoder_ffn_dim"})


@contextmanager
def resized(settings: AlignEntry, given: ModelSet, seed: int, beside: Path) -> Iterator[Rewritten]:
    """Yield the models with the reference's feed-forward widths; by transport alone, others stay as they are.

    Models that differ in more than that are left for the pre-flight to name.

    Args:
        seed: of the calibration texts, or of random inputs where there is no tokenizer.
        beside: a path whose nearest existing parent takes the temporary folder.
    """
    models = given.models
    reference = next((model for model in models if model.source == settings.reference), models[0])
    others = [k for k, m in enumerate(models) if settings.by == "transport" and _of_other_sizes(reference, m)]
    if not others:
        yield Rewritten(given)
        return
    with _temporary_folder(".resized-", beside) as folder:
        fitted, notes = list(models), []
        for k in others:
            fitted[k], note = _resized(settings, reference, models[k], seed, folder / str(k))
            notes.append(note)
        yield Rewritten(ModelSet(tuple(fitted), given.base), tuple(notes))


def _of_other_sizes(reference: Checkpoint, model: Checkpoint) -> bool:
    """Return whether a model has axes of other sizes than the reference; transport names those that it cannot carry."""
    if model.architecture != reference.architecture or model.tensors.keys() != reference.tensors.keys():
        return False
    spec = spec_for(reference.config)
    expected, sizes = (spec.fit(checkpoint.encoder.shapes) for checkpoint in (reference, model))
    return any(sizes[axis] != size for axis, size in expected.items() if axis not in spec.named)


def _resized(
    settings: AlignEntry, reference: Checkpoint, model: Checkpoint, seed: int, folder: Path
) -> tuple[Checkpoint, str]:
    from merge.alignment.matchers.transport import output_change, transported
    from merge.alignment.pair import Pair
    from merge.checkpoints.inputs import random_inputs
    from merge.text.calibrated import calibrate

    a, b = reference.encoder, model.encoder
    batches = calibrate(settings.text_source(seed), reference, needed=False).batches or random_inputs(a.config, seed)
    pair = Pair(spec_for(a.config), finite_tensors(a), finite_tensors(b), a.config, a.written_name, batches)
    carried = transported(pair)
    wanted = {k: v for k, v in a.structure.settings.items() if k in WIDTHS & set(a.structure.known)}
    changed = output_change(pair, carried.tensors, b.config)
    widths = ", ".join(dict.fromkeys(f"{plan.shape[1]} to {plan.shape[0]}" for plan in carried.plans.values()))
    note = (
        f"not function-preserving: {model.source} was approximated, its feed-forward layers carried from {widths} units; its "
        f"outputs changed by {changed:.2g} of their standard deviation (root mean square)"
    )
    return _stored(model, folder, carried.tensors, {**b.config, **wanted}), note


def _rewritten(checkpoint: Checkpoint, rewrites: Rewrites, folder: Path, notes: dict[str, None]) -> Checkpoint:
    """Return a checkpoint rewritten and stored in a folder; add to the notes, which are the same for all models."""
    from merge.symmetry.canonical import canonical_weights, fold_norms

    encoder = checkpoint.encoder
    given = finite_tensors(encoder)
    # In float64, so that what is compared is the rewriting and not its rounding.
    tensors: Mapping[str, Tensor] = {n: t.double() if t.is_floating_point() else t for n, t in given.items()}
    config: Mapping[str, Any] = encoder.config
    if rewrites.keeps_canonical:
        tensors = canonical_weights(spec_for(config), config, tensors)
        notes[_KEPT_CANONICAL] = None
    if rewrites.folds_norms:
        folded = fold_norms(spec_for(config), config, tensors)
        tensors, config = folded.tensors, folded.config
        notes |= dict.fromkeys((_FOLDED, *folded.notes))
    _prove(encoder, given, tensors, config)
    dtypes = {name: tensor.dtype for name, tensor in given.items()}
    default = next(dtype for dtype in dtypes.values() if dtype.is_floating_point)
    rounded = {n: t.to(dtypes.get(n, default)) if t.is_floating_point() else t for n, t in tensors.items()}
    return _stored(checkpoint, folder, rounded, config)


def _prove(
    encoder: Checkpoint, given: Mapping[str, Tensor], tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    """Stop unless a rewritten model has the outputs that the model had, on random inputs."""
    import torch

    from merge.alignment.evidence.proof import compare
    from merge.checkpoints.inputs import random_inputs
    from merge.checkpoints.transformers_model import build
    from merge.symmetry.transform import identity_transform

    spec, pooler = spec_for(encoder.config), absent_pooler(encoder)
    sides = ((encoder.config, {**given, **pooler}), (config, {**tensors, **pooler}))
    before, after = (
        build(settings, {encoder.written_name(n): t for n, t in side.items()}, getattr(torch, spec.dtype))
        for settings, side in sides
    )
    proof = compare(spec, before, after, identity_transform(spec, encoder.shapes), random_inputs(encoder.config))
    if not proof.holds:
        raise AlignmentError(
            f"{encoder.source}: rewritten for the alignment it is not the model it was: outputs differ by {proof.error:.2g} "
            f"standard deviations (bound {proof.bound:g}). Nothing was merged; leave out --canonical keep and rotations."
        )


def _stored(
    checkpoint: Checkpoint, folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Checkpoint:
    """Return the checkpoint with these tensors and this config, written to a folder; modules around it are copied."""
    folder.mkdir()
    _write(folder, checkpoint.encoder, tensors, config)
    for file in sorted({stored.file for name, stored in checkpoint.tensors.items() if is_module_tensor(name)}):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint.folder / file, folder / file)
    opened, original = open_checkpoint(str(folder)), checkpoint.tensors
    default = next(stored.result_dtype for stored in original.values() if not stored.is_integer)
    dtypes = {name: original[name].result_dtype if name in original else default for name in opened.tensors}
    return replace(
        opened,
        tensors={name: replace(stored, original_dtype=dtypes[name]) for name, stored in opened.tensors.items()},
        source=checkpoint.source,
        commit=checkpoint.commit,
        left_behind=checkpoint.left_behind,
    )


_KEPT_CANONICAL = "canonical weights were kept: key and value biases and means that the outputs cannot show are zero"
_FOLDED = (
    "the gains of the norms were folded into the weights that read them, so that the residual stream can be rotated"
)


def _write(folder: Path, model: Checkpoint, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a checkpoint of these tensors with the side files of its model."""
    import torch

    from merge.checkpoints.weights.arrays import TorchArrays

    arrays, ready = TorchArrays("cpu"), {name: tensor.contiguous() for name, tensor in tensors.items()}
    layout = {model.written_name(name): (arrays.dtype(t), tuple(t.shape)) for name, t in ready.items()}
    with torch.inference_mode(), open_writer(folder, layout) as writer:
        for name, tensor in ready.items():
            writer.write(model.written_name(name), arrays.dtype(tensor), arrays.raw(tensor), 0)
    write_json(folder / "config.json", config)
    copy_side_files(model.folder, tuple(name for name in model.side_files if name != "config.json"), folder)
