"""A permutation map without a layer of its own: the bottom model's units are put into the top model's order.

Every tensor of the bottom model takes its units in the new order, by the table of the family, so that the bottom computes what
it computed, with its state permuted. So the stitched model has no more layers than the two parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from merge.checkpoints.checkpoint import Checkpoint, finite_tensors
from merge.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

STREAM = "residual"


def can_reorder(model: Checkpoint) -> bool:
    """Return whether a table says which axes of a model's tensors are units of its stream."""
    from merge.symmetry.architectures import spec_for

    try:
        spec = spec_for(model.encoder.config)
        return STREAM in spec.fit(model.encoder.shapes)
    except SpecError:
        return False


def reordered(model: Checkpoint, order: Tensor) -> Mapping[str, Tensor]:
    """Return the tensors of a model with its units in another order: new unit i is the old unit order[i].

    Raises:
        SpecError: no table of the family fits the model.
    """
    from merge.symmetry.architectures import spec_for
    from merge.symmetry.permutation import Permutation, identity
    from merge.symmetry.transform import Transform, apply_transform

    encoder = model.encoder
    spec = spec_for(encoder.config)
    unmoved = identity(spec, encoder.shapes)
    transform = Transform(Permutation({**unmoved.indices, STREAM: order}, unmoved.outer), {})
    moved = apply_transform(spec, transform, finite_tensors(encoder))
    cast = {name: tensor.to(encoder.tensor(name).dtype) for name, tensor in moved.items() if name in encoder.tensors}
    return {**{name: encoder.tensor(name) for name in encoder.tensors}, **cast}


def rotation_group(model: Checkpoint) -> str | None:
    """Return the group of rotations that the stream of a model admits once its norms have gain one; None where none."""
    from merge.symmetry.architectures import spec_for

    return None if rotation_refusal(model) is not None else spec_for(model.encoder.config).folded[STREAM]


def rotation_refusal(model: Checkpoint) -> str | None:
    """Return why the stream of a model cannot be rotated; None where it can."""
    from merge.symmetry.architectures import spec_for
    from merge.symmetry.canonical import fold_norms

    try:
        spec = spec_for(model.encoder.config)
        fold_norms(spec, model.encoder.config, finite_tensors(model.encoder))
    except SpecError as error:
        return str(error).split(" Use --residual")[0]
    return None if STREAM in spec.folded else f"it is not known how the stream of {model.model_type} can be rotated."


def rotated(model: Checkpoint, rotation: Tensor) -> Mapping[str, Tensor]:
    """Return the tensors of a model, its norms' gains folded into what reads them, with its stream x as x W.

    Args:
        rotation: W, orthogonal.
    Raises:
        SpecError: the norms cannot be folded.
    """
    from merge.symmetry.architectures import spec_for
    from merge.symmetry.canonical import fold_norms
    from merge.symmetry.permutation import identity
    from merge.symmetry.transform import Transform, apply_transform, folded_spec

    encoder = model.encoder
    given = {n: t.double() if t.is_floating_point() else t for n, t in finite_tensors(encoder).items()}
    folded = fold_norms(spec_for(encoder.config), encoder.config, given)
    spec = folded_spec(spec_for(folded.config))
    shapes = {name: tuple(tensor.shape) for name, tensor in folded.tensors.items()}
    transform = Transform(identity(spec, shapes), {STREAM: rotation.T.contiguous()})
    moved = apply_transform(spec, transform, folded.tensors)
    return {name: moved[name].to(encoder.tensor(name).dtype) for name in encoder.tensors}
