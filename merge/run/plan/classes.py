"""Match the classes of two classifiers by label name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.labels import class_names, is_generic, label_order

if TYPE_CHECKING:
    from merge.symmetry.permutation import Permutation
    from merge.symmetry.spec import PermutationSpec


def _match_labels(checkpoints: Sequence[Checkpoint]) -> tuple[list[tuple[int, ...] | None], tuple[str, ...]]:
    """Return, for each model, the order that gives it the reference's classes (None where nothing moves), and notes."""
    reference, notes = checkpoints[0], []
    orders: list[tuple[int, ...] | None] = [None] * len(checkpoints)
    wanted = class_names(reference.structure)
    if wanted is None:
        return orders, ()
    for k, other in enumerate(checkpoints[1:], start=1):
        order = label_order(wanted, other.structure.label_names, reference.source, other.source)
        if order == tuple(range(len(wanted))):
            continue
        orders[k] = order
        notes.append(f"labels of {other.source} reordered by name to {', '.join(wanted)}")
    if is_generic(wanted):
        notes.append(
            f"labels carry placeholder names ({', '.join(wanted)}) and were taken to mean the same in every model"
        )
    return orders, tuple(notes)


def _label_permutation(spec: PermutationSpec, checkpoint: Checkpoint, order: tuple[int, ...]) -> Permutation:
    import torch

    from merge.symmetry.permutation import Permutation, identity

    still = identity(spec, checkpoint.shapes)
    return Permutation({**still.indices, "labels": torch.tensor(order)}, still.outer)
