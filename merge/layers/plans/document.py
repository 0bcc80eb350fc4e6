"""A layer plan as JSON holds it: the list of layers of an edit.json, or of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merge.errors import UsageError
from merge.layers.plans.making import Making
from merge.layers.plans.plan import LayerPlan

KINDS = ("mean", "laco", "zero", "affine", "without")
KEYS = {"layer", "from", "made", "weights", "states", "reads", "without"}


def plan_from_json(entries: Any, names: Sequence[str] = (), stack: str = "") -> LayerPlan:
    """Return the plan that `LayerPlan.to_json` wrote; a model is a number, or one of the names.

    Raises:
        UsageError: an entry is not a layer of a plan; the message names it.
    """
    if not isinstance(entries, list):
        raise UsageError(f"a plan is a text or a list of layers, found {type(entries).__name__}.")
    layers, makings = [], []
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("from"), list) or set(entry) - KEYS:
            raise UsageError(f"plan, layer {number}: expected {{from: [{{model, layer}}, ...]}}, found {entry!r:.80}.")
        layers.append(tuple(_source(source, number, names) for source in entry["from"]))
        makings.append(_making(entry, number, names))
    return LayerPlan(tuple(layers), stack, tuple(makings) if any(makings) else ())


def _source(source: Any, number: int, names: Sequence[str]) -> tuple[int, int]:
    model, layer = (source.get("model", 0), source.get("layer")) if isinstance(source, Mapping) else (None, None)
    if isinstance(model, str) and model in names:
        model = list(names).index(model)
    if not isinstance(model, int) or not isinstance(layer, int) or not _is_count(model) or not _is_count(layer):
        raise UsageError(f"plan, layer {number}: a source is {{model: 0, layer: 3}}, found {source!r:.80}.")
    return model, layer


def _making(entry: Mapping[str, Any], number: int, names: Sequence[str]) -> Making | None:
    kind, weights, states, without = (entry.get(key) for key in ("made", "weights", "states", "without"))
    reads = entry.get("reads")
    if kind is None:
        return None
    reads = list(names).index(reads) if isinstance(reads, str) and reads in names else reads
    numbers = weights is None or (isinstance(weights, list) and all(isinstance(w, int | float) for w in weights))
    counted = isinstance(states, list) and len(states) == 2 and all(map(_is_count, states))
    ordered = counted and isinstance(states, list) and (reads is not None or states[0] < states[1])
    pair = (states[0], states[1]) if ordered and isinstance(states, list) else None
    named = without is None or (isinstance(without, list) and all(isinstance(name, str) for name in without))
    named = named and (reads is None or (kind == "affine" and _is_count(reads)))
    if kind not in KINDS or not numbers or not named or (pair is not None) != (kind == "affine"):
        raise UsageError(
            f"plan, layer {number}: made is one of {', '.join(KINDS)}; weights are numbers, states of an affine layer two "
            f"rising numbers, or any two where it reads another model, without a list of sublayers; found {dict(entry)!r:.120}."
        )
    return Making(kind, tuple(map(float, weights or ())), pair, tuple(without or ()), reads)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
