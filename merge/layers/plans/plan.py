"""Layer plans: the layers of the output model, by model and order.

An output layer is a copy of one layer, a merge of several, a zeroed copy or a fitted map. Dropping, reordering and
repeating layers, stacking slices of several models and merging layers of one model are all such plans. A plan is made and
checked from file headers: it gives the sources of every output tensor, the input tensors that are left out, and the new
config.json. Layers are counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merge.errors import MismatchError, UsageError
from merge.layers.config import (
    Config,
    Layers,
    check_layers,
    config_notes,
    rewrite_config,
    stored_indices,
    stored_layers,
)
from merge.layers.plans.making import Making
from merge.layers.plans.numbers import check_range
from merge.layers.plans.positions import dropped_layers
from merge.layers.stacks import before_layers, layer_of, stack_of

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LayerPlan:
    """The output layers in order, each with its (model, layer) sources: one is copied, several are merged.

    Attributes:
        layers: the sources of each output layer.
        stack: the list of layers, in architectures with several (text, vision; encoder, decoder).
        makings: how each output layer is made of its sources, None for a copy, or for a merge by the method of a recipe;
            empty where all are None.
        floor: whether the plan has no layer on purpose: what embeddings and head score without one.
    """

    layers: Layers
    stack: str = ""
    makings: tuple[Making | None, ...] = ()
    floor: bool = False

    def __post_init__(self) -> None:
        if not self.floor and (not self.layers or not all(self.layers)):
            raise UsageError("a layer plan needs at least one layer, and each layer a source.")
        if self.makings and len(self.makings) != len(self.layers):
            raise UsageError(f"a plan of {len(self.layers)} layers has {len(self.makings)} ways to make them.")
        for making, sources in zip(self.makings, self.layers, strict=False):
            if making is not None:
                making.check(sources)

    def making(self, index: int) -> Making | None:
        """Return how an output layer is made; None for a copy, or a merge by the method of a recipe."""
        return self.makings[index] if self.makings else None

    @property
    def embedders(self) -> tuple[int, ...]:
        """The models whose embeddings the output has: those of the first layer, or the one whose state it reads."""
        making = self.making(0) if self.layers else None
        if making is not None and making.reads is not None:
            return (making.reads,)
        return tuple(dict.fromkeys(model for model, _ in self.layers[0])) if self.layers else (0,)

    @property
    def copies(self) -> bool:
        """Whether every layer is a copy of one layer."""
        return not any(self.makings) and all(len(sources) == 1 for sources in self.layers)

    @classmethod
    def none(cls, stack: str = "") -> LayerPlan:
        """Return the plan without any layer."""
        return cls((), stack, floor=True)

    @classmethod
    def keep(cls, layers: Sequence[int], stack: str = "") -> LayerPlan:
        """Return the plan of one model with these layers in this order; a layer may be repeated."""
        return cls(tuple(((0, layer),) for layer in layers), stack)

    @classmethod
    def without(cls, dropped: Sequence[int], total: int, stack: str = "") -> LayerPlan:
        """Return the plan of one model of `total` layers without the dropped ones.

        Raises:
            UsageError: a layer is out of range or named twice, or none would be left.
        """
        check_range(dropped, total, "layers to drop")
        repeated = sorted({layer for layer in dropped if list(dropped).count(layer) > 1})
        if repeated:
            raise UsageError(f"layer {repeated[0]} is listed twice among the layers to drop. List it once.")
        if len(dropped) == total:
            raise UsageError(f"all {total} layers would be dropped. Keep at least one.")
        return cls.keep([layer for layer in range(total) if layer not in dropped], stack)

    @classmethod
    def drop(
        cls, strategy: str, count: int, total: int, scores: Sequence[float] | None = None, stack: str = ""
    ) -> LayerPlan:
        """Return the plan of one model of `total` layers without the `count` layers selected by a strategy."""
        return cls.without(dropped_layers(strategy, count, total, scores), total, stack)

    @classmethod
    def from_slices(cls, slices: Sequence[Sequence[tuple[int, Sequence[int]]]], stack: str = "") -> LayerPlan:
        """Return the plan of consecutive slices, each a list of sources: a model's number and its layers.

        Layer i of a slice merges layer i of each source, so the sources of a slice have equally many layers.

        Raises:
            UsageError: a slice has no source, or sources of different lengths.
        """
        layers: list[tuple[tuple[int, int], ...]] = []
        for number, sources in enumerate(slices):
            lengths = [len(chosen) for _, chosen in sources]
            if not sources or 0 in lengths:
                raise UsageError(f"slice {number} has no layers. Give it a model and layers, such as 0-3.")
            if len(set(lengths)) > 1:
                counts = ", ".join(
                    f"{length} of model {model}" for length, (model, _) in zip(lengths, sources, strict=True)
                )
                raise UsageError(
                    f"slice {number} takes {counts} layers. All sources of a slice need the same number of layers."
                )
            layers += [tuple((model, chosen[i]) for model, chosen in sources) for i in range(lengths[0])]
        return cls(tuple(layers), stack)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the sources of each layer, for a manifest."""
        return [
            {"layer": index, "from": [{"model": model, "layer": layer} for model, layer in sources]}
            | ({} if (making := self.making(index)) is None else making.to_json())
            for index, sources in enumerate(self.layers)
        ]


@dataclass(frozen=True)
class PlannedTensors:
    """The sources of every output tensor, and the input tensors left out.

    Attributes:
        sources: output name -> (model, input name) pairs, in the order of the output; one is copied, several are merged.
        left_out: (model, input name) of every input tensor without an output.
        makings: output name -> how its layer is made of its sources, where the plan says so.
    """

    sources: Mapping[str, tuple[tuple[int, str], ...]]
    left_out: tuple[tuple[int, str], ...]
    makings: Mapping[str, Making] = field(default_factory=dict)


def planned_config(configs: Config | Sequence[Config], plan: LayerPlan) -> dict[str, Any]:
    """Return config.json of the output: the first model's, with every key that depends on layers rewritten.

    Args:
        configs: the config of each model, or of the only model.
    Raises:
        UsageError: a layer is out of range, the family is unknown, or the architecture cannot express the plan.
        MismatchError: the models, or layers to be merged, do not fit together.
    """
    return rewrite_config(_each(configs), plan.layers, plan.stack, plan.makings)


def plan_notes(configs: Config | Sequence[Config], plan: LayerPlan) -> tuple[str, ...]:
    """Return notes for the user on the consequences of the plan."""
    return config_notes(_each(configs), plan.layers, plan.stack, plan.makings)


def planned_tensors(
    configs: Config | Sequence[Config], shapes: Shapes | Sequence[Shapes], plan: LayerPlan
) -> PlannedTensors:
    """Return the source tensors of every output tensor.

    Tensors that act before the layers (embeddings) come from the models of the first output layer, or from the one whose
    state it reads, all other tensors outside the layers from those of the last; from several models they are merged like a layer.

    Args:
        configs: the config of each model, or of the only model.
        shapes: canonical name -> shape, for each model or the only one.
    Raises:
        UsageError: as `planned_config`.
        MismatchError: a source tensor is missing, or differs in shape from the tensors it is merged with.
    """
    configs, shapes = _each(configs), [shapes] if isinstance(shapes, Mapping) else list(shapes)
    check_layers(configs, plan.layers, plan.stack)
    family = str(configs[0]["model_type"])
    if stack_of(family, plan.stack).name and len({frozenset(m for m, _ in sources) for sources in plan.layers}) > 1:
        raise MismatchError(
            f"slices of different models need an architecture with one list of layers, which {family} is not."
        )
    parts = [{name: layer_of(name, family, plan.stack) for name in model} for model in shapes]
    last = tuple(dict.fromkeys(model for model, _ in plan.layers[-1])) if plan.layers else (0,)
    first = plan.embedders

    def outside(models: tuple[int, ...], early: bool) -> dict[str, tuple[tuple[int, str], ...]]:
        """Return the sources of tensors outside the layers: those that act before the layers, or all others."""
        names = [name for name, part in parts[models[0]].items() if part is None]
        chosen = [name for name in names if before_layers(name, family, plan.stack) == early]
        return {name: tuple((model, name) for model in models) for name in chosen}

    layers = _layer_tensors(parts, stored_layers(configs, plan.layers, plan.makings))
    sources = outside(first, True) | layers | outside(last, False)
    _check_shapes(sources, shapes, family, plan.stack)
    used = {source for pairs in sources.values() for source in pairs}
    left_out = tuple((m, n) for m, model in enumerate(shapes) for n in model if (m, n) not in used)
    return PlannedTensors(sources, left_out, _makings_by_name(configs, plan, sources, len(first), len(last)))


def _makings_by_name(
    configs: Sequence[Config],
    plan: LayerPlan,
    sources: Mapping[str, tuple[tuple[int, str], ...]],
    first: int,
    last: int,
) -> dict[str, Making]:
    """Return output name -> how it is made; tensors outside the layers that several models hold are meant as their layer is."""
    if not any(plan.makings):
        return {}
    family, stored = str(configs[0]["model_type"]), stored_indices(configs, plan.layers, plan.makings)
    named: dict[str, Making] = {}
    for name in sources:
        part = layer_of(name, family, plan.stack)
        early = part is None and before_layers(name, family, plan.stack)
        index = stored[part[1]] if part is not None else 0 if early else -1
        making = plan.making(index)
        if part is None and making is not None:
            making = _of_models(making, plan.layers[index]) if (first if early else last) > 1 else None
        if making is not None:
            named[name] = making
    return named


def _of_models(making: Making, sources: Sequence[tuple[int, int]]) -> Making:
    """Return the mean over models that goes with a mean over their layers."""
    weights: dict[int, float] = {}
    for (model, _), weight in zip(sources, making.weights or (1.0,) * len(sources), strict=True):
        weights[model] = weights.get(model, 0.0) + weight
    return Making("mean", tuple(weights.values()))


def _layer_tensors(
    parts: Sequence[Mapping[str, tuple[str, int, str] | None]], layers: Layers
) -> dict[str, tuple[tuple[int, str], ...]]:
    """Return the sources of every tensor of every output layer."""
    prefixes: dict[tuple[int, int], dict[str, str]] = {}  # (model, layer) -> suffix -> prefix
    for model, named in enumerate(parts):
        for part in named.values():
            if part is not None:
                prefixes.setdefault((model, part[1]), {})[part[2]] = part[0]
    sources: dict[str, tuple[tuple[int, str], ...]] = {}
    for index, pairs in enumerate(layers):
        first = prefixes.get(pairs[0], {})
        for model, layer in pairs:
            other = prefixes.get((model, layer), {})
            if not other or other.keys() != first.keys():
                odd = sorted(first.keys() ^ other.keys())
                raise MismatchError(
                    f"layer {layer} of model {model} has "
                    + (f"other tensors than the layer it is merged with: {odd[0][1:]}." if odd else "no tensors.")
                )
        for suffix, prefix in first.items():
            sources[f"{prefix}{index}{suffix}"] = tuple((m, f"{prefixes[m, i][suffix]}{i}{suffix}") for m, i in pairs)
    return sources


def _check_shapes(
    sources: Mapping[str, tuple[tuple[int, str], ...]], shapes: Sequence[Shapes], family: str, stack: str
) -> None:
    """Stop when a source is missing, or tensors of one name or one part of a layer differ in shape."""
    expected: dict[str, tuple[tuple[int, ...], int, str]] = {}
    for output, pairs in sources.items():
        part = layer_of(output, family, stack)
        for model, name in pairs:
            if name not in shapes[model]:
                raise MismatchError(f"model {model} lacks {name}, which the plan needs.")
            shape = shapes[model][name]
            due, other, like = expected.setdefault(part[2] if part else output, (shape, model, name))
            if shape != due:
                raise MismatchError(
                    f"{name} of model {model} has shape {shape}, but {like} of model {other} has {due}."
                )


def _each(configs: Config | Sequence[Config]) -> list[Config]:
    return [configs] if isinstance(configs, Mapping) else list(configs)
