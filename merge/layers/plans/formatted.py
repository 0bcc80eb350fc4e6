"""A layer plan as text, which `merge.layers.plans.text.parse_plan` reads back."""

from __future__ import annotations

from collections.abc import Sequence

from merge.layers.plans.making import Making
from merge.layers.plans.numbers import format_layers
from merge.layers.plans.plan import LayerPlan

Source = tuple[int, int]


def format_plan(plan: LayerPlan, models: Sequence[str]) -> str:
    """Return the text of a plan, which `parse_plan` reads back."""
    parts: list[str] = []
    run: list[int] = []
    owner = 0

    def flush() -> None:
        if run:
            parts.append(f"{models[owner]}[{format_layers(run)}]")
        run.clear()

    for index, sources in enumerate(plan.layers):
        making = plan.making(index)
        if making is None and len(sources) == 1:
            if sources[0][0] != owner:
                flush()
            owner = sources[0][0]
            run.append(sources[0][1])
            continue
        flush()
        parts.append(_formatted(making, sources, models))
    flush()
    return ", ".join(parts) or "none"


def _formatted(making: Making | None, sources: Sequence[Source], models: Sequence[str]) -> str:
    """Return the text of a layer that is not a copy."""
    if making is not None and making.states is not None:
        name = models[sources[0][0]]
        start = name if making.reads is None else models[making.reads]
        return f"affine({start}{making.states[0]}->{name}{making.states[1]})"
    if making is not None and making.without:
        return f"{models[sources[0][0]]}[{sources[0][1]}]{''.join(f'-{name}' for name in making.without)}"
    named = [f"{models[model]}{layer}" for model, layer in sources]
    if making is not None and making.weights:
        named = [f"{weight!r}*{name}" for weight, name in zip(making.weights, named, strict=True)]
    return f"{'mean' if making is None else making.kind}({', '.join(named)})"
