"""Match class labels and align every model to the reference."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from merge.alignment.align import Aligned, Alignments, align_all
from merge.alignment.choice.requested import Choices, choose_automatically
from merge.alignment.dense import dense_notes, dense_outputs, match_dense
from merge.alignment.rewrite import rewritten
from merge.alignment.settings import AlignEntry
from merge.alignment.task import AlignmentTask, reference_of
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.sentence_transformers import module_lines
from merge.errors import MismatchError, SpecError
from merge.run.plan.classes import MatchedClasses, match_classes
from merge.run.plan.heads import HeadPlan, plan_heads
from merge.symmetry.architectures import spec_for, spec_note

if TYPE_CHECKING:
    from merge.symmetry.permutation import Permutation
    from merge.symmetry.spec import PermutationSpec
    from merge.symmetry.transform import Transform

MAX_KEPT_BYTES = 1 << 26  # of weights whose pages may count until Python itself looks for garbage


@dataclass(frozen=True)
class Rebased:
    """The transforms that bring each model into the reference's basis.

    Attributes:
        spec: the permutation spec; None where nothing moves.
        labels: for each model the permutation of its classes alone; None where they have the reference's order.
        transforms: for each model the transform of classes and units; None for one that stays as it is.
        base_transform: the same for the base, which is brought into the reference's basis as the models are.
        aligned: what alignment did to each model but the reference.
        calibration: the text that was used.
        notes: sentences for the user.
        specs: for each model the spec that its transform is applied by, where heads make them differ.
    """

    spec: PermutationSpec | None
    labels: tuple[Permutation | None, ...]
    transforms: tuple[Transform | None, ...]
    base_transform: Transform | None = None
    aligned: tuple[Aligned, ...] = ()
    calibration: str | None = None
    notes: tuple[str, ...] = ()
    specs: tuple[PermutationSpec, ...] = ()

    def spec_of(self, model: int) -> PermutationSpec | None:
        """Return the spec of one model's tensors, its head and modules included."""
        return self.specs[model] if self.specs else self.spec


def choose_alignments(settings: AlignEntry, heads: HeadPlan, seed: int, device: str, beside: Path) -> Choices | None:
    """Return the alignments that `by: auto` chooses, a rotation of the residual stream among them; None for any other.

    They are chosen before models are rewritten, as a rotation needs models whose norms are folded.

    Args:
        beside: a path whose nearest existing parent takes rewritten models, where the settings state a rewrite.
    Raises:
        MismatchError: label sets differ, or the base is of another architecture than the models.
        SpecError, AlignmentError, CalibrationError: from the alignment.
    """
    if settings.by != "auto":
        return None
    with rewritten(settings, heads.given, beside) as ready:
        if ready.models is not heads.given:
            heads = plan_heads(heads.policy, ready.models)
        checkpoints = _checkpoints(heads, settings)
        labels = match_classes(checkpoints).labels
        _unmap(checkpoints)  # what was read to check them
        task = AlignmentTask(settings, checkpoints, labels, seed, device)
        return choose_automatically(task, rotations=True)


def rebase(
    settings: AlignEntry, heads: HeadPlan, seed: int = 0, choices: Choices | None = None, device: str = "cpu"
) -> Rebased:
    """Match classes by name and, if the settings ask for it, align every model, and the base, to the reference.

    Args:
        heads: the models, rewritten where the alignment needs that, and what of them is aligned.
        choices: what auto chose.
    Raises:
        MismatchError: label sets differ, or the base is of another architecture than the models to be aligned.
        SpecError, AlignmentError, CalibrationError: from the alignment.
    """
    checkpoints = _checkpoints(heads, settings)
    count, classes = len(heads.merged.models), match_classes(checkpoints)
    spec = spec_for(checkpoints[0].config) if settings.moves else classes.spec
    if spec is None:
        notes = (*classes.notes, *(dense_notes(heads.given.models) if heads.whole else ()))
        return Rebased(None, classes.labels[:count], (None,) * count, notes=notes)
    rebased = _reordered(spec, classes, checkpoints[0])
    if settings.moves:
        rotated = choices is not None and choices.rotated
        text = None if choices is None else choices.text
        _unmap(checkpoints)  # what was read to check them
        task = AlignmentTask(settings, checkpoints, classes.labels, seed, device, rotated, text)
        rebased = _with_alignments(rebased, align_all(task, choices, _carried(heads)))
        del task
        _unmap(checkpoints)
    if any(transform is not None for transform in rebased.transforms):
        rebased = replace(rebased, specs=tuple(map(_whole_spec, heads.carried)))
    if heads.whole and dense_outputs(heads.given.reference):
        rebased = _with_dense(rebased, heads, reference_of(settings, checkpoints) if settings.moves else None)
    if len(checkpoints) == count:
        return rebased
    *transforms, last = rebased.transforms
    return replace(rebased, labels=classes.labels[:count], transforms=tuple(transforms), base_transform=last)


def _unmap(checkpoints: Sequence[Checkpoint]) -> None:
    """Let the maps of the checkpoints' files go: pages that were read count as memory of the process."""
    if sum(stored.nbytes for checkpoint in checkpoints for stored in checkpoint.tensors.values()) > MAX_KEPT_BYTES:
        gc.collect()  # models and tasks hold tensors in cycles; to look for them takes up to half a second
    for checkpoint in checkpoints:
        checkpoint.unmap()


def _with_dense(rebased: Rebased, heads: HeadPlan, reference: int | None) -> Rebased:
    """Return the transforms with the outputs of dense layers in the reference's order.

    Args:
        reference: number of the reference; None where nothing is aligned, and notes say what is merged in place.
    """
    moved = any(transform is not None for transform in rebased.transforms)
    outputs = {each.path: each.axis for each in dense_outputs(heads.given.reference) if not each.fixed}
    if reference is None:
        return replace(rebased, notes=(*rebased.notes, *dense_notes(heads.given.models)))
    models = heads.given.all[: len(rebased.transforms)]
    try:
        specs = tuple(_whole_spec(model, outputs) for model in models)
    except SpecError:  # modules that nobody can align, of models that stay where they are
        if moved:
            raise
        return replace(rebased, notes=(*rebased.notes, *dense_notes(heads.given.models)))
    transforms, notes = match_dense(models, specs, rebased.transforms, reference)
    return replace(rebased, transforms=transforms, specs=specs, notes=(*rebased.notes, *notes))


def _checkpoints(heads: HeadPlan, settings: AlignEntry) -> tuple[Checkpoint, ...]:
    """Return what is brought into one basis: the models, then the base where it is of their architecture."""
    reference, base = heads.merged.reference, heads.merged.base
    if base is None or base.architecture == reference.architecture:
        return heads.merged.all
    if settings.moves:
        raise MismatchError(
            f"base {base.source} is {base.architecture}, the models are {reference.architecture}: with an alignment the "
            "base is aligned too, and has to be of the same class. Use --align none, or such a base."
        )
    return heads.merged.models


def _reordered(spec: PermutationSpec, classes: MatchedClasses, reference: Checkpoint) -> Rebased:
    """Return the models with their classes in the reference's order, and their units where they were."""
    from merge.symmetry.transform import Transform

    transforms = tuple(None if labels is None else Transform(labels, {}) for labels in classes.labels)
    notes = (*classes.notes, *filter(None, [spec_note(reference.config)]))
    return Rebased(spec, classes.labels, transforms, notes=notes)


def _with_alignments(rebased: Rebased, alignments: Alignments) -> Rebased:
    """Return the transforms with every model's units brought to the reference's, after its classes."""
    from merge.symmetry.transform import compose

    def combined(units: Transform | None, classes: Transform | None) -> Transform | None:
        return classes if units is None else units if classes is None else compose(units, classes)

    return replace(
        rebased,
        transforms=tuple(map(combined, alignments.transforms, rebased.transforms)),
        aligned=alignments.aligned,
        calibration=alignments.calibration,
        notes=(*rebased.notes, *alignments.notes),
    )


def _carried(heads: HeadPlan) -> dict[int, Checkpoint]:
    """Return the models that are aligned without the head they are written with, by their number."""
    if heads.whole:
        return {}
    pairs = zip(heads.carried, heads.merged.models, strict=True)
    return {k: carried for k, (carried, merged) in enumerate(pairs) if carried is not merged}


def _whole_spec(carried: Checkpoint, outputs: Mapping[str, str] = MappingProxyType({})) -> PermutationSpec:
    """Return the spec of all that is read of a model, with a line for every tensor of its modules.

    Args:
        outputs: of its dense layers that may move, as `module_lines` takes them.
    """
    spec = spec_for(carried.config)
    return replace(spec, lines={**spec.lines, **module_lines(carried, outputs)})
