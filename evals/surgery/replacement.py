"""Models in which linear maps stand for components, or components are left out: one at a time, or more and more of them.

A map of a sublayer gives what the sublayer writes; its skip connection and its last norm are kept, and without the sublayer it
writes nothing. A map of a layer gives the states after it; without the layer the states pass it unchanged. Maps are those that
were fitted on the whole model, not anew behind maps that are there already.

Source: Zhao et al. 2021, arXiv:2101.04547, section 3 (replace: single, cumulative from the front and from the back; remove).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import Tensor

from evals.surgery.linear import Key, Linear
from evals.surgery.slots import Plan, Step
from evals.surgery.sublayers import ATTENTION, FFN, Edit, Write
from evals.surgery.variants import Variant, silent

REPLACE, REMOVE = "replace", "remove"
LAYER = "layer"
REPLACED = (ATTENTION, FFN, LAYER)
SINGLE, FRONT, BACK = "one", "from the front", "from the back"


def writes_map(fitted: Linear) -> Write:
    """Return the edit under which a sublayer writes a linear map of what it reads."""

    def write(_write: Tensor, source: Tensor) -> Tensor:
        return fitted(source)

    return write


def component_step(layer: int, component: str, maps: Mapping[Key, Linear] | None) -> tuple[Step, ...]:
    """Return the steps of a slot in which a component is a linear map, or is left out where there are no maps."""
    if component == LAYER:
        return () if maps is None else (Step(layer, instead=maps[layer, component]),)
    if maps is None:
        return (Step(layer, silent(component)),)
    write = writes_map(maps[layer, component])
    return (Step(layer, Edit(attention=write) if component == ATTENTION else Edit(ffn=write)),)


def component_plan(layers: Collection[int], component: str, maps: Mapping[Key, Linear] | None, total: int) -> Plan:
    """Return the plan in which a component of some layers is a linear map, or is left out."""
    return tuple(component_step(slot, component, maps) if slot in layers else (Step(slot),) for slot in range(total))


def replacements(total: int, maps: Mapping[Key, Linear], cumulative: bool = True) -> Iterator[Variant]:
    """Yield every component replaced and removed in one layer, and replaced in more and more layers from either end."""
    for part, fitted in ((REPLACE, maps), (REMOVE, None)):
        for component in REPLACED:
            word = "as a linear map" if part == REPLACE else "removed"
            kinds: list[tuple[str, int, tuple[int, ...]]] = [(SINGLE, layer, (layer,)) for layer in range(total)]
            if cumulative and part == REPLACE:
                kinds += [(FRONT, count, tuple(range(count))) for count in range(2, total + 1)]
                kinds += [(BACK, count, tuple(range(total - count, total))) for count in range(2, total)]
            for kind, at, layers in kinds:
                which = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
                name = f"{which} {word}" if component == LAYER else f"{component} of {which} {word}"
                yield Variant(
                    part, name, component_plan(layers, component, fitted, total), layers, at, f"{component}, {kind}"
                )
