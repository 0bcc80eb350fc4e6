"""Align every model of a run to the reference, and prove that each is still the same function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from merge.alignment.choice.requested import Choices, picked
from merge.alignment.task import AlignmentTask
from merge.checkpoints.checkpoint import Checkpoint, absent_pooler, finite_tensors
from merge.errors import AlignmentError, CheckpointError
from merge.progress import begin_phase

if TYPE_CHECKING:
    from torch import Tensor

    from merge.alignment.choice.candidates import Choice
    from merge.alignment.evidence.proof import Proof
    from merge.alignment.evidence.quality import Quality
    from merge.alignment.pair import Alignment, Pair
    from merge.checkpoints.inputs import Batch
    from merge.symmetry.spec import PermutationSpec
    from merge.symmetry.transform import Transform


@dataclass(frozen=True)
class Aligned:
    """The alignment of one model.

    Attributes:
        source, reference: the model, and the one it was aligned to.
        by: the matcher, or the file of an earlier run.
        model: its number in the run.
        choice: the candidates, and the one that was kept.
        proof: that the model's outputs did not change; where the reference moves too, the proof with the larger error.
        transform: of its units, not of its classes.
        spec: the spec that the transform is applied by.
        moved: kind of axis -> (units that change position, units).
        quality: how alike matched units are; None where nothing moves because of one common start.
        reference_transform: of the reference, where it moves too.
    """

    source: str
    reference: str
    by: str
    model: int
    choice: Choice
    proof: Proof
    transform: Transform
    spec: PermutationSpec
    moved: Mapping[str, tuple[int, int]]
    quality: Quality | None
    reference_transform: Transform | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        choice, names = self.choice, ("by", "basis", "rotated", "score", "line")
        candidates = [
            {"axes": list(c.alignment.kinds), **{name: getattr(c, name) for name in names}} for c in choice.candidates
        ]
        return {
            "model": self.source,
            "reference": self.reference,
            "by": self.by,
            "candidates": candidates,
            "score": self.choice.score,
            "kept": list(self.choice.kept.alignment.kinds),
            "kept_by": choice.kept.by,
            "kept_basis": choice.kept.basis,
            **({} if choice.start is None else {"common_start": choice.start.to_json()}),
            "objective": list(self.choice.kept.alignment.objective),
            "moved": {kind: list(counts) for kind, counts in self.moved.items()},
            "maps": sorted(self.transform.maps),
            **({} if self.reference_transform is None else {"reference_maps": sorted(self.reference_transform.maps)}),
            "proof": asdict(self.proof),
            **({} if self.quality is None else {"quality": self.quality.to_json()}),
        }


@dataclass(frozen=True)
class Alignments:
    """The alignment of every checkpoint of a task.

    Attributes:
        transforms: for each checkpoint the transform into the reference's units; None for one that does not move.
        aligned: what was done for each checkpoint that is aligned.
        calibration: the text that was used; None where none was read.
        notes: sentences for the user.
    """

    transforms: tuple[Transform | None, ...]
    aligned: tuple[Aligned, ...]
    calibration: str | None
    notes: tuple[str, ...]


def align_all(
    task: AlignmentTask, choices: Choices | None = None, carried: Mapping[int, Checkpoint] = MappingProxyType({})
) -> Alignments:
    """Return the alignment of every checkpoint to the reference, each proved on its own model.

    Args:
        choices: what auto chose for each checkpoint that moves, where it was asked before.
        carried: for each model that is aligned without its head, by its number: the model with the head.
    Raises:
        AlignmentError, CalibrationError, SpecError: from the alignment.
    """
    begin_phase("importing torch and transformers")
    with suppress(CheckpointError):  # a class that transformers does not have is named where it is needed
        from merge.checkpoints.transformers_model import model_class

        model_class(task.reference.config)
    transforms: list[Transform | None] = [None] * len(task.checkpoints)
    records: list[Aligned] = []
    for k, choice, pair in picked(task, choices):
        if pair is None:
            records.append(_kept(task, k, choice, carried.get(k)))
            continue
        record = _aligned(task, k, choice, pair, carried.get(k))
        transforms[k] = record.transform
        if record.reference_transform is not None:
            transforms[task.reference_number] = record.reference_transform
        records.append(record)
    if all(record.choice.common for record in records):
        return Alignments(tuple(transforms), tuple(records), None, tuple(_notes(records)))
    return Alignments(tuple(transforms), tuple(records), task.text.source, (*task.text.notes, *_notes(records)))


def _aligned(task: AlignmentTask, k: int, choice: Choice, pair: Pair, carried: Checkpoint | None) -> Aligned:
    """Return the alignment of a checkpoint that moves, proved."""
    from merge.alignment.evidence.quality import match_quality
    from merge.checkpoints.inputs import random_inputs

    begin_phase("measuring match quality")
    settings, kept = task.settings, choice.kept.alignment
    quality = match_quality(pair, kept)
    for candidate in (*choice.candidates, choice.kept):
        if candidate.alignment.measured:
            candidate.alignment.measured.release()
    begin_phase("proving the alignment")
    inputs = task.text.batches or random_inputs(task.reference.config, task.seed)
    transform, spec, proof = kept.transform, task.spec, _proof(pair, kept.transform, inputs)
    if carried is not None:
        transform, spec, proof = _extended(task, transform, carried, inputs)
    reference_transform = None
    if kept.reference_maps:
        reference_transform, reference_proof = _moved_reference(pair, kept, inputs, len(task.moving))
        proof = max(proof, reference_proof, key=lambda each: each.error)
    return Aligned(
        source=task.checkpoints[k].source,
        reference=task.reference.source,
        by=settings.by if settings.apply is None else str(choice.kept.by),
        model=k,
        choice=choice,
        proof=proof,
        transform=transform,
        spec=spec,
        moved=_moved_by_kind(task.spec, transform),
        quality=quality,
        reference_transform=reference_transform,
    )


def _kept(task: AlignmentTask, k: int, choice: Choice, carried: Checkpoint | None) -> Aligned:
    """Return the record of a checkpoint that stays as it is, as it comes from one start with the reference."""
    transform, spec = choice.kept.alignment.transform, task.spec
    proof = _nothing_to_prove(spec)
    if carried is not None:
        transform, spec, proof = _extended(task, transform, carried, ())
    names = task.checkpoints[k].source, task.reference.source, task.settings.by
    return Aligned(*names, k, choice, proof, transform, spec, _moved_by_kind(task.spec, transform), None)


def _notes(aligned: Sequence[Aligned]) -> Iterator[str]:
    """Yield the notes on choices and on the quality of the matches."""
    for record in aligned:
        kept = record.choice.kept.alignment
        for note in (*record.choice.notes, *kept.notes, *(record.quality.notes if record.quality else ())):
            yield f"{record.source}: {note}"


def _proof(pair: Pair, transform: Transform, inputs: tuple[Batch, ...]) -> Proof:
    """Return the proof that a transform leaves b's outputs as they are.

    Raises:
        AlignmentError: it does not.
    """
    from merge.alignment.evidence.proof import prove
    from merge.symmetry.transform import TensorsWhenRead, moved_when_read

    if not inputs:
        return _nothing_to_prove(pair.spec)
    # Maps are proved in float64: in the dtype of the checkpoint they round what they act on.
    b: Mapping[str, Tensor] = pair.b
    if transform.maps:
        b = TensorsWhenRead(b, lambda name: _wide(pair.b[name]), lambda name, rows: _wide(pair.b[name][rows]))
    return prove(pair, moved_when_read(pair.spec, transform, b), transform, inputs)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _nothing_to_prove(spec: PermutationSpec) -> Proof:
    """Return the proof of a model that was left as it is."""
    from merge.alignment.evidence.proof import Proof

    return Proof(0.0, spec.bound, 0, tuple(spec.outputs), spec.dtype)


def _moved_reference(pair: Pair, kept: Alignment, inputs: tuple[Batch, ...], moving: int) -> tuple[Transform, Proof]:
    """Return the transform of the reference where both endpoints move, and its proof."""
    from merge.symmetry.permutation import identity
    from merge.symmetry.transform import Transform

    if moving > 1:
        raise AlignmentError("--both moves the reference towards one model; with several models leave it where it is.")
    transform = Transform(identity(pair.spec, pair.shapes), kept.reference_maps)
    return transform, _proof(replace(pair, b=pair.a), transform, inputs)


def _extended(
    task: AlignmentTask, transform: Transform, carried: Checkpoint, inputs: Sequence[Batch]
) -> tuple[Transform, PermutationSpec, Proof]:
    """Return the transform of a base model extended to the model with its head, the spec of that, and the proof of it."""
    from merge.alignment.pair import Pair
    from merge.symmetry.permutation import Permutation, identity
    from merge.symmetry.transform import Transform

    whole = carried.encoder
    spec = task.spec_of(whole, whole)
    tensors, unmoved = finite_tensors(whole) | absent_pooler(whole), identity(spec, whole.shapes)
    indices = {axis: transform.permutation.indices.get(axis, index) for axis, index in unmoved.indices.items()}
    extended = Transform(Permutation(indices, unmoved.outer), transform.maps)
    pair = Pair(spec, tensors, tensors, whole.config, whole.written_name, tuple(inputs))
    return extended, spec, _proof(pair, extended, tuple(inputs))


def _moved_by_kind(spec: PermutationSpec, transform: Transform) -> dict[str, tuple[int, int]]:
    """Return kind of axis -> (units that change position, units), summed over layers; heads count as blocks."""
    permutation = transform.permutation
    totals: dict[str, tuple[int, int]] = {}
    for axis, (moved, units) in permutation.moved().items():
        if axis in spec.named:
            continue
        kind = spec.kind(axis) if axis not in permutation.outer else f"inside {spec.kind(axis)}"
        so_far = totals.get(kind, (0, 0))
        totals[kind] = (so_far[0] + moved, so_far[1] + units)
    return totals
