"""Rewrite config.json of a model whose layers are dropped, reordered, repeated or taken from several models.

Besides the number of layers, a config holds properties of each layer by its index (attention type, rotary positions), by
a period over indices, or by how many layers share weights. They move with the layers; otherwise the written model would
compute something else than its layers did. A plan that the architecture cannot express is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merge.checkpoints.structure import structure_of
from merge.errors import MismatchError, UsageError
from merge.layers.stacks import Stack, layer_count, stack_of

# For each output layer, its (model, layer) sources.
Layers = tuple[tuple[tuple[int, int], ...], ...]
Config = Mapping[str, Any]

# Config lists with one entry per layer.
PER_LAYER = ("layer_types", "no_rope_layers")
# Config keys from which transformers derives a missing list of PER_LAYER. A key that contradicts the list is left out.
RULES = (
    "global_attn_every_n_layers",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "max_window_layers",
    "no_rope_layer_interval",
)

# Families that cannot be written without any layer, and why.
NO_FLOOR = {
    "albert": "its config divides by the number of groups",
    "t5": "its first layer owns the table of relative positions",
}


def rewrite_config(
    configs: Sequence[Config], layers: Layers, stack: str = "", marks: Sequence[Any] = ()
) -> dict[str, Any]:
    """Return the config of a model with these layers: the first model's, with every key that depends on layers rewritten.

    Sizes, heads and activations of the models are not compared here; pre-flight does that.

    Args:
        marks: of each layer, what beyond its sources makes it another layer; empty where nothing does.
    Raises:
        UsageError: a layer is out of range, or the architecture cannot express the plan.
        MismatchError: models are of different families, or merged layers of different types.
    """
    chosen = check_layers(configs, layers, stack)
    full = [structure_of(config).config for config in configs]
    result = dict(full[0])
    *outer, key = chosen.count.split(".")
    inner = [_inner(config, outer) for config in full]
    changed = dict(inner[0])
    changed[key] = len(layers)
    changed |= {alias: len(layers) for alias in chosen.aliases if alias in changed}
    changed |= {name: gathered for name in PER_LAYER if (gathered := _gather(name, inner, layers)) is not None}
    if result["model_type"] == "albert":
        changed["num_hidden_groups"] = len(stored_layers(full, layers, marks))
    if outer:
        return result | {outer[0]: changed}
    return _without_stale_rules(changed)


def check_layers(configs: Sequence[Config], layers: Layers, stack: str = "") -> Stack:
    """Return the stack of a plan, after checking that the models have its layers and the architecture allows their order.

    Raises:
        MismatchError: the models are not of one family.
        UsageError: a layer is out of range, or cannot have the index that the plan gives it.
    """
    families = {str(config["model_type"]) for config in configs}
    if len(families) > 1:
        raise MismatchError(f"layers of different architectures cannot be combined: {', '.join(sorted(families))}.")
    chosen = stack_of(families.pop(), stack)
    totals = [layer_count(config, stack) for config in configs]
    family = configs[0]["model_type"]
    if not layers and family in NO_FLOOR:
        raise UsageError(f"a {family} model needs at least one layer: {NO_FLOOR[family]}.")
    for index, sources in enumerate(layers):
        for model, layer in sources:
            if model >= len(totals):
                raise UsageError(
                    f"layer {index} of the plan is from model {model}, but the models are 0 to {len(totals) - 1}."
                )
            if layer >= totals[model]:
                raise UsageError(
                    f"layer {index} of the plan is layer {layer} of model {model}, which has layers 0 to "
                    f"{totals[model] - 1}."
                )
    _check_order(configs, layers, chosen)
    return chosen


def stored_layers(configs: Sequence[Config], layers: Layers, marks: Sequence[Any] = ()) -> Layers:
    """Return the sources of the stored layers: for ALBERT groups of shared weights, else the layers."""
    if configs[0]["model_type"] != "albert":
        return layers
    return tuple(
        tuple((m, group_of(i, configs[m])) for m, i in layers[index])
        for index in stored_indices(configs, layers, marks)
    )


def stored_indices(configs: Sequence[Config], layers: Layers, marks: Sequence[Any] = ()) -> tuple[int, ...]:
    """Return for each stored layer the index of the first output layer that uses it.

    ALBERT's layer i of L uses group int(i / (L / G)) of G. The smallest number of groups that gives every layer its
    weights is used: layers dropped from one group leave it shared; other orders need up to one group per layer (untied).
    """
    if configs[0]["model_type"] != "albert" or not layers:
        return tuple(range(len(layers)))
    wanted = [
        (tuple((m, group_of(i, configs[m])) for m, i in sources), mark)
        for sources, mark in zip(layers, marks or (None,) * len(layers), strict=True)
    ]
    total = len(wanted)
    for groups in range(1, total + 1):
        owners: dict[int, int] = {}
        if all(wanted[owners.setdefault(int(i / (total / groups)), i)] == group for i, group in enumerate(wanted)):
            return tuple(owners[group] for group in range(groups))
    raise AssertionError("one group per layer always fits")


def group_of(layer: int, config: Config) -> int:
    """Return the group of weights that a layer of ALBERT uses, by the formula of transformers."""
    settings = structure_of(config).settings
    return int(layer / (settings["num_hidden_layers"] / settings["num_hidden_groups"]))


def config_notes(
    configs: Sequence[Config], layers: Layers, stack: str = "", marks: Sequence[Any] = ()
) -> tuple[str, ...]:
    """Return notes for the user on the consequences of a plan."""
    notes = []
    full = [structure_of(config).config for config in configs]
    reference = full[0]
    first = layers[0] if layers else ()
    if int(reference.get("conv_kernel_size", 0) or 0) > 0 and any(layer != 0 for _, layer in first):
        notes.append("DeBERTa's convolution acts after the first layer, which is now another layer")
    if reference["model_type"] == "albert":
        had, has = int(reference["num_hidden_groups"]), len(stored_layers(full, layers, marks))
        if has > had:
            notes.append(
                f"ALBERT's {had} groups of shared weights are now stored as {has}, as this order of layers needs"
            )
    left = sorted(set(RULES) & reference.keys() - rewrite_config(configs, layers, stack, marks).keys())
    if left:
        notes.append(f"left out of config.json, as the layers no longer match: {', '.join(left)}")
    return tuple(notes)


def _check_order(configs: Sequence[Config], layers: Layers, stack: Stack) -> None:
    """Raise UsageError for a plan that the architecture cannot express."""
    family = configs[0]["model_type"]
    for config in configs:
        if config.get("per_layer_config"):
            raise UsageError("per_layer_config gives layers different sizes; such layers cannot be moved.")
    moved = [
        f"layer {layer} of model {model} to index {index}"
        for index, sources in enumerate(layers)
        for model, layer in sources
        if layer != index
    ]
    wrong = [index for index, sources in enumerate(layers) for _, layer in sources if (layer == 0) != (index == 0)]
    if stack.lacks and wrong:
        raise UsageError(
            f"{family}: only the first layer has no {stack.lacks}, so layer 0 must be first and only there; this plan "
            f"breaks that at index {wrong[0]}. Keep layer 0 first."
        )
    if moved and any(config.get("scale_attn_by_inverse_layer_idx") for config in configs):
        raise UsageError(
            f"{family} with scale_attn_by_inverse_layer_idx scales attention by the layer's index, so no layer can "
            f"move, but this plan moves {moved[0]}. Only the last layers can be dropped."
        )


def _inner(config: Config, outer: Sequence[str]) -> Config:
    """Return the part of a config that holds the number of layers; empty if the config leaves it to defaults."""
    for key in outer:
        config = config.get(key) or {}
    return config


def _gather(name: str, configs: Sequence[Config], layers: Layers) -> list[Any] | None:
    """Return a per-layer list for the new layers, or None if the configs have no such list."""
    if all(config.get(name) is None for config in configs):
        return None
    gathered = []
    for index, sources in enumerate(layers):
        values = [configs[model][name][layer] for model, layer in sources]
        if any(value != values[0] for value in values):
            raise MismatchError(
                f"layer {index} of the plan would merge layers of different types: {name} is "
                f"{', '.join(str(value) for value in values)}."
            )
        gathered.append(values[0])
    return gathered


def _without_stale_rules(config: Config) -> dict[str, Any]:
    """Return the config without RULES that contradict its lists; max_window_layers is updated if that suffices."""
    stated = {name: config[name] for name in PER_LAYER if config.get(name) is not None}
    if not stated:
        return dict(config)
    result = dict(config)
    kinds = stated.get("layer_types", [])
    if "max_window_layers" in result and "sliding_attention" in kinds:
        result["max_window_layers"] = kinds.index("sliding_attention")
    settings = structure_of({key: value for key, value in result.items() if key not in stated}).settings
    if all(settings[name] == value for name, value in stated.items()):
        return result
    return {key: value for key, value in result.items() if key not in RULES}
