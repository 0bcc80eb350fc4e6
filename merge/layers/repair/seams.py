"""Seams: the places of a plan where a layer reads another state than it was trained on, as layers are missing before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from merge.layers.plans.numbers import format_layers
from merge.layers.plans.plan import LayerPlan


@dataclass(frozen=True)
class Seam:
    """A seam that can be repaired in the layer below it.

    Attributes:
        index: the output layer below the seam.
        model, state: the model above the seam, and the state of it that the layer below should write.
        missing: the layers between, where both sides are of one model.
    """

    index: int
    model: int
    state: int
    missing: tuple[int, ...] = ()

    @property
    def words(self) -> str:
        """The seam in words, for notes."""
        between = f"without layers {format_layers(self.missing)}" if self.missing else f"into model {self.model}"
        return f"the seam after output layer {self.index}, {between}"


def find_seams(plan: LayerPlan, totals: Sequence[int]) -> tuple[tuple[Seam, ...], tuple[str, ...]]:
    """Return the seams of a plan, from the first layer to the last, and notes on those that cannot be repaired.

    Args:
        totals: the number of layers of each model.
    """
    seams: list[Seam] = []
    notes: list[str] = []
    copies = [
        sources[0] if plan.making(index) is None and len(sources) == 1 else None
        for index, sources in enumerate(plan.layers)
    ]
    if copies and copies[0] is not None and copies[0][1] > 0:
        notes.append("the first layers are dropped: no kept layer is below that seam, so it is not repaired")
    for index, source in enumerate(copies):
        if source is None:
            continue
        model, layer = source
        if index + 1 == len(copies):
            if layer + 1 < totals[model]:
                seams.append(Seam(index, model, totals[model], tuple(range(layer + 1, totals[model]))))
            continue
        above = copies[index + 1]
        if above is None:
            continue
        if above[0] != model and above[1] > 0:
            seams.append(Seam(index, above[0], above[1]))
        elif above[0] == model and above[1] > layer + 1:
            seams.append(Seam(index, model, above[1], tuple(range(layer + 1, above[1]))))
    return tuple(seams), tuple(notes)
