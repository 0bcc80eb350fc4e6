"""Permute statistics along with the model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from merge.errors import AlignmentError
from merge.methods.statistics.record import Statistics

if TYPE_CHECKING:
    from torch import Tensor

    from merge.symmetry.spec import PermutationSpec
    from merge.symmetry.transform import Transform


def move_statistics(spec: PermutationSpec, transform: Transform, statistics: Statistics) -> Statistics:
    """Return the statistics of the transformed model.

    Fisher information moves as its tensor does. A Gram matrix moves on both sides as the axis along which its weight reads:
    the last, or the first for weights stored as (in, out). The record keeps the hash of the model that was measured.

    Raises:
        SpecError: the permutation is of another architecture or size.
        AlignmentError: the transform has maps besides the permutation: sums of squares cannot be rotated.
    """
    from merge.symmetry.permutation import apply_axes

    if transform.maps:
        raise AlignmentError(
            f"{statistics.kind} statistics cannot follow a rotated model. Use --basis permutation and --residual permutation, "
            "or a method without statistics."
        )

    def moved(name: str, tensor: Tensor) -> Tensor:
        axes = spec.axes(name)
        if statistics.kind == "gram":
            axes = (axes[0 if name in statistics.transposed else -1],) * 2
        return apply_axes(axes, transform.permutation, tensor)

    tensors = {name: moved(name, tensor) for name, tensor in statistics.tensors.items()}
    return dataclasses.replace(statistics, tensors=tensors)
