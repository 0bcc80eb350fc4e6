"""Bases: every model brought into the reference's basis, classes by name and units by alignment, and the proof of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from merge.alignment.align import Aligned, Alignments, align_all
from merge.alignment.settings import AlignEntry
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.sentence_transformers import module_lines
from merge.errors import MismatchError
from merge.run.plan.classes import _label_permutation, _match_labels
from merge.run.plan.heads import HeadPlan, plan_heads
from merge.symmetry.architectures import spec_for, spec_note

if TYPE_CHECKING:
    from merge.alignment.choice.candidates import Choice
    from merge.symmetry.permutation import Permutation
    from merge.symmetry.spec import PermutationSpec
    from merge.symmetry.transform import Transform


@dataclass(frozen=True)
class Bases:
    """What takes each model into the reference's basis.

    Attributes:
        spec: the permutation spec; None when nothing has to be permuted.
        labels: for each model the permutation of its classes alone, None where they stand as the reference's.
        transforms: for each model what takes it there, classes and units; None for one that stays as it is.
        base_transform: the same for the base, which is brought into the reference's basis as the models are.
        aligned: what alignment did to each model but the reference.
        calibration: what text was used.
        specs: for each model the spec that its transform is read by, where heads make them differ.
        rotated: what auto chose, where it rotates the residual stream: models have to be prepared for it, and nothing was
            moved yet.
    """

    spec: PermutationSpec | None
    labels: tuple[Permutation | None, ...]
    transforms: tuple[Transform | None, ...]
    base_transform: Transform | None = None
    aligned: tuple[Aligned, ...] = ()
    calibration: str | None = None
    notes: tuple[str, ...] = ()
    specs: tuple[PermutationSpec, ...] = ()
    rotated: tuple[Choice, ...] = ()

    def spec_of(self, model: int) -> PermutationSpec | None:
        """Return the spec of one model's tensors, its head and modules included."""
        return self.specs[model] if self.specs else self.spec


def find_bases(
    entry: AlignEntry,
    models: Sequence[Checkpoint],
    base: Checkpoint | None = None,
    heads_policy: str | None = None,
    seed: int = 0,
    rotate: bool = False,
    decided: Sequence[Choice] = (),
    device: str = "cpu",
) -> Bases:
    """Match classes by name and, if the settings ask for it, align every model, and the base, to the first model.

    Args:
        entry: the settings of the alignment.
        heads_policy, seed: the recipe's.
        rotate, decided, device: as `merge.alignment.align.align_all` takes them.
    Raises:
        MismatchError: label sets differ, or the base is of another architecture than the models to be aligned.
        SpecError, AlignmentError, CalibrationError: from the alignment.
    """
    heads = plan_heads(heads_policy, models, base)
    models, base = heads.merged, heads.base
    alike = base is not None and base.architecture == models[0].architecture
    if base is not None and not alike and entry.moves:
        raise MismatchError(
            f"base {base.source} is {base.architecture}, the models are {models[0].architecture}: with an alignment the "
            "base is aligned too, and has to be of the same class. Use --align none, or such a base."
        )
    checkpoints = [*models, base] if base is not None and alike else list(models)
    orders, notes = _match_labels(checkpoints)
    needed = entry.moves or any(order is not None for order in orders)
    spec = spec_for(checkpoints[0].config) if needed else None
    if spec is None:
        nothing = (None,) * len(checkpoints)
        return Bases(None, nothing[: len(models)], nothing[: len(models)], notes=notes)
    notes = (*notes, *filter(None, [spec_note(checkpoints[0].config)]))
    if any(order is not None for order in orders) and "labels" not in spec.named:
        raise MismatchError(
            f"labels stand in another order than in {models[0].source}, and which of {models[0].architecture}'s tensors hold "
            "them is not known. Save the models again with id2label in one order."
        )
    labels = tuple(
        None if order is None else _label_permutation(spec, checkpoints[k], order) for k, order in enumerate(orders)
    )
    bases = Bases(spec, labels, tuple(map(_as_transform, labels)), notes=notes)
    if entry.moves:
        done = align_all(entry, checkpoints, spec, labels, seed, _carried(heads), rotate, decided, device)
        bases = replace(_with_alignments(bases, done), rotated=done.rotated)
    if any(transform is not None for transform in bases.transforms):
        bases = replace(bases, specs=tuple(map(_whole_spec, heads.carried)))
    if not alike:
        return bases
    *own, last = bases.transforms
    return replace(bases, labels=labels[:-1], transforms=tuple(own), base_transform=last)


def _carried(heads: HeadPlan) -> dict[int, Checkpoint]:
    """Return the models that are aligned without the head they are written with, by their index."""
    if heads.whole:
        return {}
    pairs = zip(heads.carried, heads.merged, strict=True)
    return {k: carried for k, (carried, merged) in enumerate(pairs) if carried is not merged}


def _as_transform(labels: Permutation | None) -> Transform | None:
    from merge.symmetry.transform import Transform

    return None if labels is None else Transform(labels, {})


def _with_alignments(bases: Bases, done: Alignments) -> Bases:
    """Return the bases with every model's units brought to the reference's, behind its classes."""
    from merge.symmetry.transform import compose

    transforms = tuple(
        found if labels is None or found is None else compose(found, labels)
        for found, labels in zip(done.transforms, bases.transforms, strict=True)
    )
    kept = tuple(labels if found is None else found for found, labels in zip(transforms, bases.transforms, strict=True))
    return replace(
        bases, transforms=kept, aligned=done.aligned, calibration=done.calibration, notes=(*bases.notes, *done.notes)
    )


def _whole_spec(carried: Checkpoint) -> PermutationSpec:
    """Return the spec of all that is read of a model, with a line for every tensor of its modules."""
    spec = spec_for(carried.config)
    return replace(spec, lines={**spec.lines, **module_lines(carried)})
