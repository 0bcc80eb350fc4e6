"""The config of a model whose layers were dropped, reordered, repeated or taken from several models.

The number of layers is the least of it: whatever a config states of each layer by its place (which attends to
everything, which has rotary positions), by a period over places, or by how many layers share weights moves with the
layers, or the written model computes something else than its layers did. What the architecture cannot say is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merge.checkpoints.structure import structure_of
from merge.errors import MismatchError, UsageError
from merge.layers.stacks import Stack, layer_count, stack_of

# For each output layer the (model, layer) pairs it is made of.
Layers = tuple[tuple[tuple[int, int], ...], ...]
Config = Mapping[str, Any]

# One entry for each layer, by place.
PER_LAYER = ("layer_types", "no_rope_layers")
# Rules from which transformers fills in a list of PER_LAYER that is not stated. A rule that no longer gives the list
# would contradict it, so it is left out.
RULES = (
    "global_attn_every_n_layers",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "max_window_layers",
    "no_rope_layer_interval",
)


def rewrite_config(configs: Sequence[Config], layers: Layers, stack: str = "") -> dict[str, Any]:
    """Return the config of the model with these layers: the first model's, with all that depends on layers rewritten.

    That the models are otherwise alike (sizes, heads, activation) is not looked at here; pre-flight does.

    Raises:
        UsageError: a layer is out of range, or the architecture cannot say what is asked.
        MismatchError: models are of different families, or layers to be merged of different kinds.
    """
    listed = check_layers(configs, layers, stack)
    full = [structure_of(config).config for config in configs]
    result = dict(full[0])
    *outer, key = listed.count.split(".")
    inner = [_inner(config, outer) for config in full]
    changed = dict(inner[0])
    changed[key] = len(layers)
    changed |= {alias: len(layers) for alias in listed.aliases if alias in changed}
    changed |= {name: gathered for name in PER_LAYER if (gathered := _gather(name, inner, layers)) is not None}
    if result["model_type"] == "albert":
        changed["num_hidden_groups"] = len(stored_layers(full, layers))
    if outer:
        return result | {outer[0]: changed}
    return _without_stale_rules(changed)


def check_layers(configs: Sequence[Config], layers: Layers, stack: str = "") -> Stack:
    """Return the list of layers that the plan is about, after checking that the models have and can hold its layers.

    Raises:
        MismatchError: the models are not of one family.
        UsageError: a layer is out of range, or cannot stand where the plan puts it.
    """
    families = {str(config["model_type"]) for config in configs}
    if len(families) > 1:
        raise MismatchError(f"layers of different architectures cannot be put together: {', '.join(sorted(families))}.")
    listed = stack_of(families.pop(), stack)
    totals = [layer_count(config, stack) for config in configs]
    for place, sources in enumerate(layers):
        for model, layer in sources:
            if model >= len(totals):
                raise UsageError(
                    f"layer {place} of the plan is of model {model}, but there are {len(totals)} (from 0)."
                )
            if layer >= totals[model]:
                raise UsageError(
                    f"layer {place} of the plan is layer {layer} of model {model}, which has {totals[model]}: "
                    f"0 to {totals[model] - 1}."
                )
    _check_places(configs, layers, listed)
    return listed


def stored_layers(configs: Sequence[Config], layers: Layers) -> Layers:
    """Return what the layers are made of as they are stored: for ALBERT groups of shared weights, else the layers.

    ALBERT's layer i of L uses group int(i / (L / G)) of G. The fewest groups that give every layer its weights are
    kept: dropping layers of one group shares it still; any other order takes up to a group for each layer (untied).
    """
    if configs[0]["model_type"] != "albert":
        return layers
    wanted = [tuple((m, group_of(i, configs[m])) for m, i in sources) for sources in layers]
    total = len(wanted)
    for groups in range(1, total + 1):
        owners: dict[int, tuple[tuple[int, int], ...]] = {}
        if all(owners.setdefault(int(i / (total / groups)), group) == group for i, group in enumerate(wanted)):
            return tuple(owners[group] for group in range(groups))
    raise AssertionError("a group for each layer always fits")


def group_of(layer: int, config: Config) -> int:
    """Return the group whose weights a layer of ALBERT uses, by transformers' own formula."""
    settings = structure_of(config).settings
    return int(layer / (settings["num_hidden_layers"] / settings["num_hidden_groups"]))


def config_notes(configs: Sequence[Config], layers: Layers, stack: str = "") -> tuple[str, ...]:
    """Return what a user should know of a plan although nothing is wrong with it."""
    notes = []
    full = [structure_of(config).config for config in configs]
    reference = full[0]
    if int(reference.get("conv_kernel_size", 0) or 0) > 0 and any(layer != 0 for _, layer in layers[0]):
        notes.append("the convolution of this DeBERTa acts after the first place, which another layer now has")
    if reference["model_type"] == "albert":
        had, has = int(reference["num_hidden_groups"]), len(stored_layers(full, layers))
        if has > had:
            notes.append(
                f"weights shared by {had} groups are now stored in {has}: this order cannot be shared as before"
            )
    left = sorted(set(RULES) & reference.keys() - rewrite_config(configs, layers, stack).keys())
    if left:
        notes.append(f"left out of config.json, as layers no longer follow it: {', '.join(left)}")
    return tuple(notes)


def _check_places(configs: Sequence[Config], layers: Layers, listed: Stack) -> None:
    """Refuse by name what the architecture cannot say."""
    family = configs[0]["model_type"]
    for config in configs:
        if config.get("per_layer_config"):
            raise UsageError("per_layer_config gives layers sizes of their own; such layers cannot be moved.")
    moved = [
        f"layer {layer} of model {model} to place {place}"
        for place, sources in enumerate(layers)
        for model, layer in sources
        if layer != place
    ]
    at_first = [place for place, sources in enumerate(layers) for _, layer in sources if (layer == 0) != (place == 0)]
    if listed.lacks and at_first:
        raise UsageError(
            f"{family}: the first layer has no {listed.lacks} and every other has one, so layer 0 stays first and "
            f"stands nowhere else; this plan breaks that at place {at_first[0]}. Keep layer 0 first."
        )
    if moved and any(config.get("scale_attn_by_inverse_layer_idx") for config in configs):
        raise UsageError(
            f"{family} with scale_attn_by_inverse_layer_idx: attention is scaled by a layer's place, so no layer can "
            f"move, and this plan moves {moved[0]}. Only layers from the top can be dropped."
        )


def _inner(config: Config, outer: Sequence[str]) -> Config:
    """Return the part of a config that the layers' number stands in; empty where it is left to defaults."""
    for key in outer:
        config = config.get(key) or {}
    return config


def _gather(name: str, configs: Sequence[Config], layers: Layers) -> list[Any] | None:
    """Return a list by place, each entry that of the layer which now stands there; None where there is no such list."""
    if all(config.get(name) is None for config in configs):
        return None
    gathered = []
    for place, sources in enumerate(layers):
        found = [configs[model][name][layer] for model, layer in sources]
        if any(value != found[0] for value in found):
            raise MismatchError(
                f"layer {place} of the plan would merge layers of different kinds: {name} is "
                f"{', '.join(str(value) for value in found)}."
            )
        gathered.append(found[0])
    return gathered


def _without_stale_rules(config: Config) -> dict[str, Any]:
    """Return the config without rules that its lists no longer follow; a window's beginning is moved where it can be."""
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
