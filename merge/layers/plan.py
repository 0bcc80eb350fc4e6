"""LayerPlan: which layers, of which models and in which order, make up the output model.

An output layer is a copy of one layer, or several that a method merges. Dropping, reordering, repeating layers and
stitching slices of several models together are all such lists. A plan is made and checked from headers: it says for
every output tensor where it comes from, for every input tensor that goes nowhere that it does, and what config.json
has to say. Layers are counted from 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge.errors import MismatchError, UsageError, nearest
from merge.layers.config import Config, Layers, check_layers, config_notes, rewrite_config, stored_layers
from merge.layers.stacks import before_layers, layer_of, stack_of

STRATEGIES = ("top", "bottom", "odd", "even", "symmetric", "contribution")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LayerPlan:
    """The output layers in order, each as (model, layer) pairs: one pair is a copy, several are merged.

    Attributes:
        layers: for each output layer its sources.
        stack: which list of layers, for architectures with several (text, vision; encoder, decoder).
    """

    layers: Layers
    stack: str = ""

    def __post_init__(self) -> None:
        if not self.layers or not all(self.layers):
            raise UsageError("a layer plan with no layer, or with a layer made of nothing. Keep at least one.")

    @classmethod
    def keep(cls, layers: Sequence[int], stack: str = "") -> LayerPlan:
        """Return the plan of one model with these of its layers, in this order; a layer may stand twice."""
        return cls(tuple(((0, layer),) for layer in layers), stack)

    @classmethod
    def without(cls, dropped: Sequence[int], total: int, stack: str = "") -> LayerPlan:
        """Return the plan of one model of `total` layers without some.

        Raises:
            UsageError: a layer is out of range or named twice, or none would be left.
        """
        _check_range(dropped, total, "layers to drop")
        twice = sorted({layer for layer in dropped if list(dropped).count(layer) > 1})
        if twice:
            raise UsageError(f"layer {twice[0]} is to be dropped twice. Name it once.")
        if len(dropped) == total:
            raise UsageError(f"all {total} layers would be dropped. Keep at least one.")
        return cls.keep([layer for layer in range(total) if layer not in dropped], stack)

    @classmethod
    def drop(
        cls, strategy: str, count: int, total: int, scores: Sequence[float] | None = None, stack: str = ""
    ) -> LayerPlan:
        """Return the plan of one model of `total` layers without the `count` that a strategy picks (`dropped_layers`)."""
        return cls.without(dropped_layers(strategy, count, total, scores), total, stack)

    @classmethod
    def from_slices(cls, slices: Sequence[Sequence[tuple[int, Sequence[int]]]], stack: str = "") -> LayerPlan:
        """Return the plan of slices one after the other, each a list of sources: a model's number and its layers.

        Layer i of a slice is made of layer i of each source, so the sources of a slice are equally long.

        Raises:
            UsageError: a slice has no source, or sources of different lengths.
        """
        layers: list[tuple[tuple[int, int], ...]] = []
        for number, sources in enumerate(slices):
            lengths = [len(chosen) for _, chosen in sources]
            if not sources or 0 in lengths:
                raise UsageError(f"slice {number} has no layers. Give it a model and layers, such as 0-3.")
            if len(set(lengths)) > 1:
                found = ", ".join(
                    f"{length} of model {model}" for length, (model, _) in zip(lengths, sources, strict=True)
                )
                raise UsageError(f"slice {number} takes {found} layers. Its sources must be equally long to be merged.")
            layers += [tuple((model, chosen[i]) for model, chosen in sources) for i in range(lengths[0])]
        return cls(tuple(layers), stack)

    @property
    def models(self) -> tuple[int, ...]:
        """The models that layers come from, in order."""
        return tuple(sorted({model for sources in self.layers for model, _ in sources}))

    def to_json(self) -> list[dict[str, Any]]:
        """Return which layer came from where, for a manifest."""
        return [
            {"layer": place, "from": [{"model": model, "layer": layer} for model, layer in sources]}
            for place, sources in enumerate(self.layers)
        ]


@dataclass(frozen=True)
class PlannedTensors:
    """Where every output tensor comes from, and what goes nowhere.

    Attributes:
        sources: output name -> (model, input name) pairs, in the order of the output; one is a copy, several are merged.
        left_out: (model, input name) of every input tensor that no output is made of.
    """

    sources: Mapping[str, tuple[tuple[int, str], ...]]
    left_out: tuple[tuple[int, str], ...]


def parse_layers(text: str, total: int | None = None) -> tuple[int, ...]:
    """Return the layers that a text such as "9-11,3" names, in its order; ranges hold both their ends.

    Args:
        total: how many layers there are; None leaves the range unchecked.
    Raises:
        UsageError: it is no such text, a range runs backwards, or a layer is out of range.
    """
    layers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part, re.ASCII)
        if found is None:
            raise UsageError(f"layers are numbers and ranges separated by commas, such as 9-11,3; found {text!r}.")
        start, end = int(found[1]), int(found[2] or found[1])
        if end < start:
            raise UsageError(f"the range {part.strip()} runs backwards. Name its layers one by one, or turn it round.")
        layers += range(start, end + 1)
    if total is not None:
        _check_range(layers, total, f"layers {text!r}")
    return tuple(layers)


def format_layers(layers: Sequence[int]) -> str:
    """Return the text that `parse_layers` reads back as these layers: ranges where they follow one another."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def dropped_layers(strategy: str, count: int, total: int, scores: Sequence[float] | None = None) -> tuple[int, ...]:
    """Return the layers that a strategy drops, ascending.

    top: the last `count`; bottom: the first; odd, even: every other layer from the top down, those whose number
    counted from 1 is odd or even (of 12, four: 5, 7, 9, 11 or 6, 8, 10, 12); symmetric: the middle, as many kept at
    the bottom as at the top; contribution: those whose score, how much a layer changes what it is given, is least (of equal
    ones the upper).

    Args:
        scores: one for each layer; for contribution alone.
    Raises:
        UsageError: the strategy is unknown or cannot drop as many.
    Source: Sajjad et al. 2023, arXiv:2004.03844, section 3.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"unknown strategy {strategy!r}.{nearest(strategy, STRATEGIES)}")
    if not 0 < count < total:
        raise UsageError(f"{count} layers to drop of {total}: expected 1 to {total - 1}.")
    if strategy != "contribution" and scores is not None:
        raise UsageError(f"strategy {strategy} takes no scores; they belong to contribution.")
    if strategy == "top":
        return tuple(range(total - count, total))
    if strategy == "bottom":
        return tuple(range(count))
    if strategy == "contribution":
        return _least(scores, count, total)
    if strategy == "symmetric":
        if (total - count) % 2:
            raise UsageError(
                f"symmetric keeps as many layers at the bottom as at the top, so {count} of {total} cannot be dropped: "
                f"{total - count} are left, an odd number."
            )
        kept = (total - count) // 2
        return tuple(range(kept, total - kept))
    numbers = [layer for layer in range(total) if (layer + 1) % 2 == (strategy == "odd")]
    if count > len(numbers):
        raise UsageError(f"{strategy} can drop {len(numbers)} of {total} layers, not {count}.")
    return tuple(numbers[-count:])


def planned_config(configs: Config | Sequence[Config], plan: LayerPlan) -> dict[str, Any]:
    """Return config.json of the output: the first model's, with all that depends on its layers rewritten.

    Args:
        configs: of each model, or of the only one.
    Raises:
        UsageError: a layer is out of range, the family is not known, or the architecture cannot say what is planned.
        MismatchError: the models, or layers to be merged, do not fit together.
    """
    return rewrite_config(_each(configs), plan.layers, plan.stack)


def plan_notes(configs: Config | Sequence[Config], plan: LayerPlan) -> tuple[str, ...]:
    """Return what a user should know of the plan although nothing is wrong with it."""
    return config_notes(_each(configs), plan.layers, plan.stack)


def planned_tensors(
    configs: Config | Sequence[Config], shapes: Shapes | Sequence[Shapes], plan: LayerPlan
) -> PlannedTensors:
    """Return for every output tensor the input tensors it is made of.

    What acts before the layers (embeddings) comes from the models of the first output layer, everything else that is
    no layer's from those of the last; where these are several it is merged like a layer.

    Args:
        configs: of each model, or of the only one.
        shapes: canonical name -> shape, likewise.
    Raises:
        UsageError: as `planned_config`.
        MismatchError: a tensor is missing in one of the models it should come from, or differs in shape.
    """
    configs, shapes = _each(configs), [shapes] if isinstance(shapes, Mapping) else list(shapes)
    check_layers(configs, plan.layers, plan.stack)
    family = str(configs[0]["model_type"])
    if stack_of(family, plan.stack).name and len({frozenset(m for m, _ in sources) for sources in plan.layers}) > 1:
        raise MismatchError(
            f"slices of different models are for architectures with one list of layers, not for {family}."
        )
    parts = [{name: layer_of(name, family, plan.stack) for name in model} for model in shapes]
    first, last = (tuple(dict.fromkeys(model for model, _ in plan.layers[place])) for place in (0, -1))

    def others(models: tuple[int, ...], early: bool) -> dict[str, tuple[tuple[int, str], ...]]:
        """Return the sources of tensors that are no layer's: those that act before the layers, or all others."""
        names = [name for name, part in parts[models[0]].items() if part is None]
        chosen = [name for name in names if before_layers(name, family, plan.stack) == early]
        return {name: tuple((model, name) for model in models) for name in chosen}

    sources = others(first, True) | _layer_tensors(parts, stored_layers(configs, plan.layers)) | others(last, False)
    _check_shapes(sources, shapes, family, plan.stack)
    used = {source for made_of in sources.values() for source in made_of}
    return PlannedTensors(sources, tuple((m, n) for m, model in enumerate(shapes) for n in model if (m, n) not in used))


def _layer_tensors(
    parts: Sequence[Mapping[str, tuple[str, int, str] | None]], layers: Layers
) -> dict[str, tuple[tuple[int, str], ...]]:
    """Return the sources of every tensor of every output layer."""
    held: dict[tuple[int, int], dict[str, str]] = {}
    for model, named in enumerate(parts):
        for part in named.values():
            if part is not None:
                held.setdefault((model, part[1]), {})[part[2]] = part[0]
    sources: dict[str, tuple[tuple[int, str], ...]] = {}
    for place, made_of in enumerate(layers):
        first = held.get(made_of[0], {})
        for model, layer in made_of:
            other = held.get((model, layer), {})
            if not other or other.keys() != first.keys():
                odd = sorted(first.keys() ^ other.keys())
                raise MismatchError(
                    f"layer {layer} of model {model} holds "
                    + (f"other tensors than the layer it is merged with: {odd[0][1:]}." if odd else "no tensors.")
                )
        for suffix, prefix in first.items():
            sources[f"{prefix}{place}{suffix}"] = tuple((m, f"{held[m, i][suffix]}{i}{suffix}") for m, i in made_of)
    return sources


def _check_shapes(
    sources: Mapping[str, tuple[tuple[int, str], ...]], shapes: Sequence[Shapes], family: str, stack: str
) -> None:
    """Stop when a source is missing, or tensors of one name, or of one part of a layer, differ in shape."""
    seen: dict[str, tuple[tuple[int, ...], int, str]] = {}
    for output, made_of in sources.items():
        part = layer_of(output, family, stack)
        for model, name in made_of:
            if name not in shapes[model]:
                raise MismatchError(f"model {model} lacks {name}, which the plan takes from it too.")
            shape = shapes[model][name]
            due, other, like = seen.setdefault(part[2] if part else output, (shape, model, name))
            if shape != due:
                raise MismatchError(f"{name} of model {model} is {shape}, but {like} of model {other} is {due}.")


def _least(scores: Sequence[float] | None, count: int, total: int) -> tuple[int, ...]:
    if scores is None or len(scores) != total:
        raise UsageError(f"contribution needs a score for each of {total} layers, found {len(scores or ())}.")
    if any(score != score for score in scores):
        raise UsageError("a layer's score is not a number (NaN), so layers cannot be ranked.")
    return tuple(sorted(sorted(range(total), key=lambda layer: (scores[layer], -layer))[:count]))


def _check_range(layers: Sequence[int], total: int, what: str) -> None:
    wrong = [layer for layer in layers if not 0 <= layer < total]
    if wrong:
        raise UsageError(f"{what}: there is no layer {wrong[0]}; the model has {total}, 0 to {total - 1}.")


def _each(configs: Config | Sequence[Config]) -> list[Config]:
    return [configs] if isinstance(configs, Mapping) else list(configs)
