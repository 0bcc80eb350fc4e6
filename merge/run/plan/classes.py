"""Match the classes of classifiers by label name, and name the tensors that have one row per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.labels import class_names, is_generic, label_order, numbering_notes
from merge.checkpoints.structure import structure_of
from merge.errors import MismatchError
from merge.run.plan.base_model import LABEL_KEYS
from merge.symmetry.architectures import spec_for

if TYPE_CHECKING:
    from merge.symmetry.permutation import Permutation
    from merge.symmetry.spec import PermutationSpec


@dataclass(frozen=True)
class MatchedClasses:
    """The classes of checkpoints, matched to the reference's by name.

    Attributes:
        labels: for each checkpoint the permutation into the reference's order; None where it has that order.
        spec: the reference's spec; None where no class moves.
        notes: sentences for the user.
    """

    labels: tuple[Permutation | None, ...]
    spec: PermutationSpec | None
    notes: tuple[str, ...]


def match_classes(checkpoints: Sequence[Checkpoint]) -> MatchedClasses:
    """Return the classes of every checkpoint matched to the first one's.

    Raises:
        MismatchError: label sets differ, or the tensors that hold the classes are not known.
    """
    orders, notes = _label_orders(checkpoints)
    if all(order is None for order in orders):
        return MatchedClasses((None,) * len(checkpoints), None, notes)
    reference = checkpoints[0]
    spec = spec_for(reference.config)
    if "labels" not in spec.named:
        raise MismatchError(
            f"labels have another order than in {reference.source}, and the tensors of {reference.architecture} that hold them "
            "are not known. Save the models again with id2label in one order."
        )
    pairs = zip(checkpoints, orders, strict=True)
    labels = tuple(None if order is None else _label_permutation(spec, model, order) for model, order in pairs)
    return MatchedClasses(labels, spec, notes)


def _label_orders(checkpoints: Sequence[Checkpoint]) -> tuple[list[tuple[int, ...] | None], tuple[str, ...]]:
    """Return, for each model, the order that gives it the reference's classes (None where nothing moves), and notes."""
    reference = checkpoints[0]
    notes = [note for checkpoint in checkpoints for note in numbering_notes(checkpoint.structure, checkpoint.source)]
    orders: list[tuple[int, ...] | None] = [None] * len(checkpoints)
    names = class_names(reference.structure)
    if names is None:
        return orders, ()
    for k, other in enumerate(checkpoints[1:], start=1):
        order = label_order(names, other.structure.label_names, reference.source, other.source)
        if order == tuple(range(len(names))):
            continue
        orders[k] = order
        notes.append(f"labels of {other.source} reordered by name to {', '.join(names)}")
    if is_generic(names):
        notes.append(
            f"labels carry placeholder names ({', '.join(names)}) and were taken to mean the same in every model"
        )
    return orders, tuple(notes)


def _label_permutation(spec: PermutationSpec, checkpoint: Checkpoint, order: tuple[int, ...]) -> Permutation:
    import torch

    from merge.symmetry.permutation import Permutation, identity

    unmoved = identity(spec, checkpoint.shapes)
    return Permutation({**unmoved.indices, "labels": torch.tensor(order)}, unmoved.outer)


def label_tensors(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the canonical names of the tensors that have one row per class: they grow when a class is added."""
    names = class_names(checkpoint.structure)
    if names is None:
        return frozenset()
    more = [*names, "one more"]
    labels = {"id2label": {str(i): name for i, name in enumerate(more)}, "label2id": {n: i for i, n in enumerate(more)}}
    config = {key: value for key, value in checkpoint.config.items() if key not in LABEL_KEYS}
    grown = structure_of(config | labels).shapes
    per_class = {name for name, shape in checkpoint.structure.shapes.items() if grown[name] != shape}
    return frozenset(checkpoint.canonical_name(name) for name in per_class) & checkpoint.tensors.keys()
