"""Aligned: every model of a run brought into the units of the reference, each proved to be the model it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from merge.alignment.choice.requested import choices, decide, rotates
from merge.alignment.reading import Material, absent_pooler, read_material
from merge.alignment.settings import AlignEntry
from merge.checkpoints.checkpoint import Checkpoint, finite_tensors
from merge.errors import AlignmentError, UsageError, nearest
from merge.symmetry.architectures import spec_for

if TYPE_CHECKING:
    from torch import Tensor

    from merge.alignment.choice.candidates import Choice
    from merge.alignment.evidence.proof import Proof
    from merge.alignment.evidence.quality import Quality
    from merge.alignment.pair import Alignment, Pair
    from merge.checkpoints.inputs import Batch
    from merge.symmetry.permutation import Permutation
    from merge.symmetry.spec import PermutationSpec
    from merge.symmetry.transform import Transform


@dataclass(frozen=True)
class Aligned:
    """What alignment did to one model.

    Attributes:
        source, reference: the model, and the one it was aligned to.
        by: the matcher, or the file that an earlier one wrote.
        model: its place in the run.
        proof: of the two where the reference moves too, the one that is less close.
        transform: of its units, classes aside.
        spec: which the transform is read by.
        reference_transform: of the reference, where it moves too.
        moved: kind of axis -> (units that change place, units).
        quality: how alike the units are that it put in one place; None where one common start said that nothing has to move.
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
    """What takes each checkpoint to the reference's units, None for one that stays, and what was done for it.

    Attributes:
        rotated: choices that rotate the residual stream of models whose norms are folded, which these are not: nothing
            else was done then.
    """

    transforms: tuple[Transform | None, ...]
    aligned: tuple[Aligned, ...]
    calibration: str | None
    notes: tuple[str, ...]
    rotated: tuple[Choice, ...] = ()


def align_all(
    entry: AlignEntry,
    checkpoints: Sequence[Checkpoint],
    spec: PermutationSpec,
    labels: Sequence[Permutation | None],
    seed: int = 0,
    carried: Mapping[int, Checkpoint] = MappingProxyType({}),
    rotate: bool = False,
    decided: Sequence[Choice] = (),
    device: str = "cpu",
) -> Alignments:
    """Return what aligns every checkpoint to the reference that the settings name, each proved on its own model.

    Args:
        entry: the settings of the alignment.
        checkpoints: the models, then the base where there is one.
        spec: of the reference.
        labels: what brings the classes of each into one order; applied before anything is compared.
        seed: of everything random.
        carried: for each model that is aligned without its head, by its index: the model with the head.
        rotate: whether auto may choose to rotate the residual stream, for which models have to be prepared.
        decided: what auto chose for each model that moves, before they were.
        device: where models run and the large products are taken.
    Raises:
        AlignmentError, CalibrationError, SpecError: from the alignment.
    """
    from merge.alignment.evidence.quality import match_quality
    from merge.checkpoints.inputs import random_inputs

    at = reference_of(entry, checkpoints)
    spec, stand_in = _without_pooler(_spec_moved(spec, entry), checkpoints[at])
    spec.fit(checkpoints[at].shapes)
    read = cache(partial(read_material, entry, seed, checkpoints[at]))
    moving = [k for k in range(len(checkpoints)) if k != at] or [at]
    pairs = _pairs(entry, seed, checkpoints, spec, labels, stand_in, read, device)
    transforms: list[Transform | None] = [None] * len(checkpoints)
    aligned: list[Aligned] = []
    if not decided and entry.by == "auto":
        decided = decide(entry, at, moving, pairs, rotate)
        if rotate and all(choice.kept.rotated for choice in decided):
            return Alignments(tuple(transforms), (), None, (), tuple(decided))
    for k, pair, choice in choices(entry, at, moving, pairs, decided):
        kept = choice.kept.alignment
        inputs = () if choice.common else read().batches or random_inputs(checkpoints[at].config, seed)
        found, own, proof = kept.transform, spec, _proved(pair, kept.transform, inputs)
        if k in carried:
            found, own, proof = _carry(carried[k], entry, found, inputs)
        transforms[k], other = None if choice.common else found, None
        if kept.reference_maps:
            other, proof_there = _moved_reference(pair, kept, inputs, len(moving))
            transforms[at], proof = other, max(proof, proof_there, key=lambda one: one.error)
        by = entry.by if entry.apply is None else str(choice.kept.by)
        names = checkpoints[k].source, checkpoints[at].source, by
        quality = None if choice.common else match_quality(pair, kept)
        aligned.append(Aligned(*names, k, choice, proof, found, own, _moved_by_kind(pair, found), quality, other))
    told = read() if read.cache_info().currsize else Material((), None, ())
    return Alignments(tuple(transforms), tuple(aligned), told.source, (*told.notes, *_notes(aligned)))


def _notes(aligned: Sequence[Aligned]) -> Iterator[str]:
    """Yield what is to be said of choices and their quality."""
    for one in aligned:
        for note in (*one.choice.notes, *(one.quality.notes if one.quality else ())):
            yield f"{one.source}: {note}"


def reference_of(entry: AlignEntry, checkpoints: Sequence[Checkpoint]) -> int:
    """Return the place of the model that the others are aligned to.

    Raises:
        UsageError: the entry names none of the models.
    """
    if entry.reference is None:
        return 0
    names = [checkpoint.source for checkpoint in checkpoints]
    if entry.reference not in names:
        raise UsageError(f"reference {entry.reference!r} is not one of the models.{nearest(entry.reference, names)}")
    return names.index(entry.reference)


def _spec_moved(spec: PermutationSpec, entry: AlignEntry) -> PermutationSpec:
    """Return the spec with the group of the residual stream that was asked for."""
    from merge.symmetry.transform import folded_spec

    return folded_spec(spec) if rotates(entry, spec) else spec


def _pairs(
    entry: AlignEntry,
    seed: int,
    checkpoints: Sequence[Checkpoint],
    spec: PermutationSpec,
    labels: Sequence[Permutation | None],
    stand_in: Mapping[str, Tensor],
    read: Callable[[], Material],
    device: str,
) -> Callable[..., Pair]:
    """Return what makes the pair of two checkpoints by their places; a model that was read last is not read again.

    With text=False it has none, and none is read.
    """
    from merge.alignment.pair import Pair, Settings, TextFacts
    from merge.symmetry.permutation import apply

    settings = Settings(entry.basis or "permutation", entry.restarts, entry.steps, entry.both, seed)
    reference = checkpoints[reference_of(entry, checkpoints)]

    @lru_cache(maxsize=2)
    def tensors(k: int) -> dict[str, Tensor]:
        own, order = finite_tensors(checkpoints[k]), labels[k]
        return (own if order is None else apply(spec, order, own)) | dict(stand_in)

    def pair(a: int, b: int, text: bool = True) -> Pair:
        config, name = reference.config, reference.written_name
        material = read() if text else Material((), None, ())
        facts = TextFacts(material.labels, material.mask_token, material.special_tokens)
        return Pair(spec, tensors(a), tensors(b), config, name, material.batches, settings, facts, device)

    return pair


def _proved(pair: Pair, transform: Transform, inputs: tuple[Batch, ...]) -> Proof:
    from merge.alignment.evidence.proof import Proof, prove
    from merge.symmetry.transform import apply_transform

    if not inputs:
        return Proof(0.0, pair.spec.bound, 0, tuple(pair.spec.outputs), pair.spec.dtype)
    # Maps are proved in float64: in the dtype of the checkpoint they round what they act on.
    b = {n: t.double() if transform.maps and t.is_floating_point() else t for n, t in pair.b.items()}
    return prove(replace(pair, b=b), apply_transform(pair.spec, transform, b), transform, inputs)


def _moved_reference(pair: Pair, kept: Alignment, inputs: tuple[Batch, ...], moving: int) -> tuple[Transform, Proof]:
    """Return what moves the reference where both ends were asked to, and its proof."""
    from merge.symmetry.permutation import identity
    from merge.symmetry.transform import Transform

    if moving > 1:
        raise AlignmentError("--both moves the reference towards one model; with several models leave it where it is.")
    transform = Transform(identity(pair.spec, pair.shapes), kept.reference_maps)
    return transform, _proved(replace(pair, b=pair.a), transform, inputs)


def _without_pooler(spec: PermutationSpec, reference: Checkpoint) -> tuple[PermutationSpec, dict[str, Tensor]]:
    """Return the spec and stand-ins for a pooler that the base models are aligned without: zeros, on no axis."""
    absent = absent_pooler(reference)
    if not absent:
        return spec, {}
    axes = {name for line in absent for name in spec.axes(line)[0].names}

    def still(lines: Mapping[str, str]) -> dict[str, str]:
        return {n: " ".join("-" if i.rstrip("'=") in axes else i for i in line.split(" ")) for n, line in lines.items()}

    taps = {axis: sites for axis, sites in spec.taps.items() if axis not in axes}
    without = replace(spec, lines=still(spec.lines), outputs=still(spec.outputs), taps=taps)
    return without, absent


def _carry(
    model: Checkpoint, entry: AlignEntry, found: Transform, inputs: Sequence[Batch]
) -> tuple[Transform, PermutationSpec, Proof]:
    """Return the transform of a base model over what goes along with it, its spec, and its proof on the outputs of the whole."""
    from merge.alignment.pair import Pair
    from merge.symmetry.permutation import Permutation, identity
    from merge.symmetry.transform import Transform

    whole = model.encoder
    spec, stand_in = _without_pooler(_spec_moved(spec_for(whole.config), entry), whole)
    tensors, still = finite_tensors(whole) | stand_in, identity(spec, whole.shapes)
    indices = {axis: found.permutation.indices.get(axis, index) for axis, index in still.indices.items()}
    moved = Transform(Permutation(indices, still.outer), found.maps)
    pair = Pair(spec, tensors, tensors, whole.config, whole.written_name, tuple(inputs))
    return moved, spec, _proved(pair, moved, tuple(inputs))


def _moved_by_kind(pair: Pair, transform: Transform) -> dict[str, tuple[int, int]]:
    """Return kind of axis -> (units that change place, units), summed over layers; heads count as blocks."""
    permutation = transform.permutation
    totals: dict[str, tuple[int, int]] = {}
    for axis, (moved, units) in permutation.moved().items():
        if axis in pair.spec.named:
            continue
        kind = pair.spec.kind(axis) if axis not in permutation.outer else f"inside {pair.spec.kind(axis)}"
        old = totals.get(kind, (0, 0))
        totals[kind] = (old[0] + moved, old[1] + units)
    return totals
