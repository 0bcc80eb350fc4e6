"""Slices of a recipe as the text of a layer plan: A[0-3], merge(A[4-7], B[4-7]), mean(0.7*A8, 0.3*B8)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

# What a plan may hold beside copies where layers are merged by the method of a recipe.
FUNCTIONS = ("merge", "mean")


def expanded(slices: Any, models: Sequence[str]) -> Any:
    """Return slices with those that are plan text written out as models and their layers; others as they are.

    Layers of one model are copies (passthrough), `merge(...)` merges layer i of each source by the method of the slice or of
    the recipe, `mean(...)` is one layer, the mean of several.

    Args:
        slices: of a recipe: one text, or a list of texts and slices, whose `layers` may be text too.
        models: of the recipe in order, which the text names A, B, ...
    Raises:
        ValueError: a text is no plan; the message shows the place.
    """
    if isinstance(slices, str):
        slices = [slices]
    if not isinstance(slices, list | tuple):
        return slices
    written: list[Any] = []
    for part in slices:
        named = part.get("layers") if isinstance(part, Mapping) else part
        # Numbers alone are layers of every model.
        if isinstance(named, str) and (not isinstance(part, Mapping) or re.search(r"^\s*[A-Za-z]|[\[(]", named)):
            common = {key: value for key, value in part.items() if key != "layers"} if isinstance(part, Mapping) else {}
            written += _slices(named, models, common)
        else:
            written.append(part)
    return written


def _slices(text: str, models: Sequence[str], common: Mapping[str, Any]) -> list[dict[str, Any]]:
    from merge.errors import UsageError
    from merge.layers.plans.numbers import format_layers
    from merge.layers.plans.text import model_letter, parse_plan

    try:
        plan = parse_plan(text, [model_letter(number) for number in range(len(models))], functions=FUNCTIONS)
    except UsageError as error:
        raise ValueError(str(error)) from None
    entries = [(sources, plan.making(index)) for index, sources in enumerate(plan.layers)]

    def group(entry: Any) -> Any:
        """Layers of the same models that follow one another are one slice; a mean is one of its own."""
        sources, making = entry
        return id(entry) if making is not None else tuple(model for model, _ in sources)

    slices: list[dict[str, Any]] = []
    for _, run in groupby(entries, group):
        columns = list(run)
        (sources, making), weights = columns[0], {}
        if making is not None and making.weights:
            weights = {"settings": {"weights": list(making.weights)}}
        method = {"method": "linear", **weights} if making is not None else {"method": "passthrough"}
        slices.append(
            {
                "sources": [
                    {"model": models[model], "layers": format_layers([each[0][place][1] for each in columns])}
                    for place, (model, _) in enumerate(sources)
                ],
                **(common if len(sources) > 1 and making is None else method),
            }
        )
    return slices
