"""The layers of a stitch: which are copied from which model, and whether the map takes one of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import MergeError
from merge.layers.assembly import Assembly, assemble
from merge.layers.parts import parts_of
from merge.layers.plans.making import Making
from merge.layers.plans.plan import LayerPlan
from merge.layers.stacks import layer_count
from merge.layers.stitching.fit_together import check_pair, with_names_of
from merge.layers.stitching.kinds import StitchSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The layers of one stitch.

    Attributes:
        source: the bottom model under its own names.
        bottom, top: whole, under the same names.
        layered: whether the map takes a layer of its own.
    """

    source: Checkpoint
    bottom: Checkpoint
    top: Checkpoint
    settings: StitchSettings
    layered: bool

    @classmethod
    def of(cls, bottom: Checkpoint, top: Checkpoint, settings: StitchSettings) -> Layout:
        """Return the layout, with the way that the map is written in."""
        return cls(bottom, with_names_of(bottom, top), top, settings, _takes_layer(bottom, settings))

    @property
    def norm_last(self) -> bool:
        return parts_of(self.bottom.config).norm_last

    def plan(self) -> LayerPlan:
        """Return the layers of the output."""
        (k, m), total = self.settings.at, layer_count(self.top.config)
        layers: list[tuple[tuple[int, int], ...]] = [((0, layer),) for layer in range(k)]
        makings: list[Making | None] = [None] * k
        if self.layered:
            layers.append(((1, max(m - 1, 0)),))
            makings.append(Making("affine", states=(k, m), reads=0))
        layers += [((1, layer),) for layer in range(m, total)]
        makings += [None] * (total - m)
        if self.bottom.model_type == "albert" and self.layered and k:
            makings[k - 1] = Making("mean", (1.0,))  # a layer of its own, as the norm that it ends in changes
        return LayerPlan(tuple(layers), makings=tuple(makings) if any(makings) else ())

    def assembled(self, plan: LayerPlan, moved: Mapping[int, Mapping[str, Tensor]] | None = None) -> Assembly:
        """Return the assembly of the plan, by headers alone."""
        return assemble(
            (self.bottom, self.top), plan, moved, fits=lambda first, other: check_pair(first, other, self.settings)
        )


def _takes_layer(bottom: Checkpoint, settings: StitchSettings) -> bool:
    """Return whether a map takes a layer of its own: none where the units of the bottom model can be moved instead."""
    from merge.layers.stitching.reordered import can_reorder, rotation_group

    if settings.kind == "identity":
        return False
    if settings.kind == "permutation":
        return not can_reorder(bottom)
    try:
        first = not parts_of(bottom.config).norm_last
    except MergeError:
        return True
    return not (settings.kind == "orthogonal" and first and rotation_group(bottom) is not None)
