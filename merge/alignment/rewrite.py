"""Prepared: models rewritten before they are aligned, as checkpoints of their own; their function stays.

The one exception is `resized`: transport carries a model of other widths into the reference's, approximately.

Folding the gains of norms and keeping canonical weights change tensors that the engine would read as they are stored.
What is written here lies in a temporary folder beside the output and goes with the run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.alignment.choice.requested import keeps_canonical, rotates
from merge.alignment.reading import absent_pooler
from merge.alignment.settings import AlignEntry
from merge.checkpoints.checkpoint import Checkpoint, finite_tensors, open_checkpoint
from merge.checkpoints.modules import is_module_tensor
from merge.checkpoints.weights.write import open_writer
from merge.disk.staging import copy_side_files, write_json
from merge.errors import AlignmentError
from merge.symmetry.architectures import spec_for

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prepared:
    """Models and base as they are aligned and merged, under the names that the user gave, and what was done to them."""

    models: tuple[Checkpoint, ...]
    base: Checkpoint | None
    notes: tuple[str, ...] = ()


@contextmanager
def prepared(
    entry: AlignEntry, models: Sequence[Checkpoint], base: Checkpoint | None, beside: Path
) -> Iterator[Prepared]:
    """Yield the models rewritten as the entry asks: norms folded for a rotation, canonical weights where they are kept.

    What an earlier run did for a transform that is applied is done again: the header of the file tells.

    Args:
        beside: a path whose nearest existing parent takes the temporary folder.
    Raises:
        SpecError: the norms of this architecture cannot be folded.
        CheckpointError: a tensor holds NaN or infinity.
        AlignmentError: a model rewritten is not the model it was.
    """
    rotating, keeping = _rotating(entry, models), entry.moves and keeps_canonical(entry)
    if not rotating and not keeping:
        yield Prepared(tuple(models), base)
        return
    parent = next(folder for folder in beside.expanduser().resolve().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".prepared-", dir=parent) as place:
        everyone = [*models, *([] if base is None else [base])]
        notes: dict[str, None] = {}
        written = []
        for k, checkpoint in enumerate(everyone):
            written.append(_rewritten(keeping, rotating, checkpoint, Path(place) / str(k), notes))
        yield Prepared(tuple(written[: len(models)]), None if base is None else written[-1], tuple(notes))


def _rotating(entry: AlignEntry, models: Sequence[Checkpoint]) -> bool:
    if entry.apply is None:
        return entry.residual == "rotation"
    return rotates(entry, spec_for(models[0].encoder.config))


# The config entries that name the width of the feed-forward layers.
WIDTHS = frozenset({"intermediate_size", "hidden_dim", "n_inner", "ffn_dim", "d_ff", "encoder_ffn_dim"})


@contextmanager
def resized(entry: AlignEntry, models: Sequence[Checkpoint], seed: int, beside: Path) -> Iterator[Prepared]:
    """Yield the models in the reference's feed-forward widths: by transport alone, others stay as they are.

    Models that differ in more than that are left for the pre-flight to name.

    Args:
        seed: of the calibration texts, or of random inputs where there is no tokenizer.
        beside: as `prepared` has it.
    """
    at = next((k for k, model in enumerate(models) if model.source == entry.reference), 0)
    others = [k for k, model in enumerate(models) if entry.by == "transport" and _of_other_sizes(models[at], model)]
    if not others:
        yield Prepared(tuple(models), None)
        return
    parent = next(folder for folder in beside.expanduser().resolve().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".resized-", dir=parent) as place:
        found, notes = list(models), []
        for k in others:
            found[k], note = _resized(entry, models[at], models[k], seed, Path(place) / str(k))
            notes.append(note)
        yield Prepared(tuple(found), None, tuple(notes))


def _of_other_sizes(reference: Checkpoint, model: Checkpoint) -> bool:
    """Return whether a model has axes of other sizes than the reference; transport names those that it cannot carry."""
    if model.architecture != reference.architecture or model.tensors.keys() != reference.tensors.keys():
        return False
    spec = spec_for(reference.config)
    own, other = (spec.fit(checkpoint.encoder.shapes) for checkpoint in (reference, model))
    return any(other[axis] != size for axis, size in own.items() if axis not in spec.named)


def _resized(
    entry: AlignEntry, reference: Checkpoint, model: Checkpoint, seed: int, folder: Path
) -> tuple[Checkpoint, str]:
    from merge.alignment.matchers.transport import change, transported
    from merge.alignment.pair import Pair
    from merge.checkpoints.inputs import random_inputs
    from merge.text.calibrated import calibrate

    a, b = reference.encoder, model.encoder
    batches = calibrate(entry.text_source(seed), reference, needed=False)[0] or random_inputs(a.config, seed)
    pair = Pair(spec_for(a.config), finite_tensors(a), finite_tensors(b), a.config, a.written_name, batches)
    found = transported(pair)
    wanted = {k: v for k, v in a.structure.settings.items() if k in WIDTHS & set(a.structure.known)}
    changed = change(pair, found.tensors, b.config)
    said = ", ".join(dict.fromkeys(f"{plan.shape[1]} to {plan.shape[0]}" for plan in found.plans.values()))
    note = (
        f"not function-preserving: {model.source} was approximated, its feed-forward layers carried from {said} units; its "
        f"outputs changed by {changed:.2g} of their standard deviation (root mean square)"
    )
    return _stored(model, folder, found.tensors, {**b.config, **wanted}), note


def _rewritten(
    keeping: bool, rotating: bool, checkpoint: Checkpoint, folder: Path, notes: dict[str, None]
) -> Checkpoint:
    from merge.symmetry.canonical import canonical_weights, fold_norms

    own = checkpoint.encoder
    given = finite_tensors(own)
    # In float64, so that what is compared is the rewriting and not its rounding.
    tensors: Mapping[str, Tensor] = {n: t.double() if t.is_floating_point() else t for n, t in given.items()}
    config: Mapping[str, Any] = own.config
    if keeping:
        tensors = canonical_weights(spec_for(config), config, tensors)
        notes["canonical weights were kept: key and value biases and means that the outputs cannot show are zero"] = (
            None
        )
    if rotating:
        folded = fold_norms(spec_for(config), config, tensors)
        tensors, config = folded.tensors, folded.config
        notes |= dict.fromkeys((_FOLDED, *folded.notes))
    _prove(own, given, tensors, config)
    widths = {name: tensor.dtype for name, tensor in given.items()}
    usual = next(dtype for dtype in widths.values() if dtype.is_floating_point)
    rounded = {n: t.to(widths.get(n, usual)) if t.is_floating_point() else t for n, t in tensors.items()}
    return _stored(checkpoint, folder, rounded, config)


def _prove(
    own: Checkpoint, given: Mapping[str, Tensor], tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    """Stop unless a model rewritten says what it said, on random inputs."""
    import torch

    from merge.alignment.evidence.proof import compare
    from merge.checkpoints.inputs import random_inputs
    from merge.checkpoints.transformers_model import build
    from merge.symmetry.transform import identity_transform

    spec, still = spec_for(own.config), absent_pooler(own)
    sides = ((own.config, {**given, **still}), (config, {**tensors, **still}))
    before, after = (
        build(settings, {own.written_name(n): t for n, t in side.items()}, getattr(torch, spec.dtype))
        for settings, side in sides
    )
    proof = compare(spec, before, after, identity_transform(spec, own.shapes), random_inputs(own.config))
    if not proof.holds:
        raise AlignmentError(
            f"{own.source}: rewritten for the alignment it is not the model it was: outputs differ by {proof.error:.2g} "
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
    opened, own = open_checkpoint(str(folder)), checkpoint.tensors
    usual = next(stored.own_dtype for stored in own.values() if not stored.is_integer)
    given = {n: replace(t, given=own[n].own_dtype if n in own else usual) for n, t in opened.tensors.items()}
    return replace(
        opened, tensors=given, source=checkpoint.source, commit=checkpoint.commit, left_behind=checkpoint.left_behind
    )


_FOLDED = (
    "the gains of the norms were folded into the weights that read them, so that the residual stream can be rotated"
)


def _write(folder: Path, own: Checkpoint, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a checkpoint of these tensors with the side files of its model."""
    import torch

    from merge.checkpoints.weights.arrays import TorchArrays

    arrays, ready = TorchArrays("cpu"), {name: tensor.contiguous() for name, tensor in tensors.items()}
    layout = {own.written_name(name): (arrays.dtype(t), tuple(t.shape)) for name, t in ready.items()}
    with torch.inference_mode(), open_writer(folder, layout) as writer:
        for name, tensor in ready.items():
            writer.write(own.written_name(name), arrays.dtype(tensor), arrays.raw(tensor), 0)
    write_json(folder / "config.json", config)
    copy_side_files(own.folder, tuple(name for name in own.side_files if name != "config.json"), folder)
