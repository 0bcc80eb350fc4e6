"""Sites: the named activations of a model, resolved for its family.

Names count layers from 0, as everywhere in this project:

    embeddings              what layer 0 reads
    layer 3 attention       what attention writes to the residual stream, before it is added
    layer 3 attention norm  the stream after the norm that follows attention (post-LN families)
    layer 3 ffn input       what the feed-forward part reads
    layer 3 ffn preactivation, layer 3 ffn hidden    its hidden units before and after the activation (times the gate)
    layer 3 ffn             what it writes to the stream, before it is added
    layer 3 output          the stream after the layer
    pooler                  what the classifier reads of a text
    logits                  the outputs

Where they are in a family is what `merge.layers.stacks` and `merge.layers.parts` know of it, else the taps of its
permutation table. Layers that share one module (ALBERT) are told apart by the order in which it runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge.errors import SpecError, UsageError, nearest
from merge.layers.activations import check_one_text_input
from merge.layers.parts import Parts, parts_of
from merge.layers.stacks import FAMILIES, stack_of

# The kinds of sites in a layer, in the order in which they are computed.
KINDS = ("attention", "attention norm", "ffn input", "ffn preactivation", "ffn hidden", "ffn", "output")
EMBEDDINGS, POOLER, LOGITS = "embeddings", "pooler", "logits"
# Heads that classify whole texts, and the modules whose side is what their last layer reads.
POOLED_HEADS = ("ForSequenceClassification", "ForNextSentencePrediction")
LOGIT_HEADS = (*POOLED_HEADS, "ForTokenClassification", "ForMaskedLM", "ForCausalLM", "LMHeadModel")
CLASSIFIERS = ("classifier.out_proj:in", "logits_proj:in", "sequence_summary:out", "classifier:in")
POOLERS = ("pooler_activation:out", "pooler:out")


@dataclass(frozen=True)
class Site:
    """A named activation of a model.

    Attributes:
        name: "layer 3 ffn hidden".
        kind: "ffn hidden"; the name itself outside the layers.
        layer: the number of the layer; None outside.
        address: side of a module, as `merge.checkpoints.hooks` names it; empty for the model's logits.
        run: which run of that module in a forward pass; layers may share a module.
    """

    name: str
    kind: str
    layer: int | None
    address: str
    run: int = 0

    @property
    def module(self) -> str:
        """The path of its module."""
        return self.address.split(":")[0]


@dataclass(frozen=True)
class Layer:
    """A layer of a live model: the path of its module, and which run of the module it is."""

    number: int
    path: str
    run: int


@dataclass(frozen=True)
class Sites:
    """The sites of a model.

    Attributes:
        sites: by name, in the order of the forward pass.
        layers: in their order.
        parts: paths below a layer of the projections and norms; None where only whole layers are known.
        order: the order of the axes of activations, as the third word of an address; "time" for XLNet.
        notes: for the user, on sites that the model does not have.
    """

    sites: Mapping[str, Site]
    layers: tuple[Layer, ...]
    parts: Parts | None
    order: str = ""
    notes: tuple[str, ...] = ()

    def select(self, asked: Sequence[str]) -> tuple[Site, ...]:
        """Return sites by name, or by kind for all layers ("ffn hidden"), in the order of the forward pass.

        Raises:
            UsageError: there is no such site; names the nearest.
        """
        names: set[str] = set()
        for each in asked:
            chosen = {site.name for site in self.sites.values() if each in (site.name, site.kind)}
            if not chosen:
                kinds = list(dict.fromkeys(site.kind for site in self.sites.values()))
                raise UsageError(
                    f"unknown site {each!r}.{nearest(each, {*self.sites, *kinds})} Kinds of sites of this model, each for "
                    f"all layers: {', '.join(kinds)}; layers count from 0 to {len(self.layers) - 1}."
                )
            names |= chosen
        return tuple(site for name, site in self.sites.items() if name in names)


def sites_of(model: Any, stack: str = "") -> Sites:
    """Return the sites of a live model (or one on the meta device).

    Args:
        stack: the name of its list of layers, in families that have several.
    Raises:
        UsageError: the model has several inputs or reads no text; its layers cannot be told; no layers at all.
    """
    config = model.config.to_dict()
    check_one_text_input(model, str(getattr(model.config, "name_or_path", "") or "the model"))
    layers = _layers(model, stack)
    modules = frozenset(name for name, _ in model.named_modules())
    parts, note = _parts(config | {"architectures": [type(model).__name__]}, layers[0], stack)
    order = ":time" if model.config.model_type == "xlnet" else ""
    sites: dict[str, Site] = {EMBEDDINGS: Site(EMBEDDINGS, EMBEDDINGS, None, f"{layers[0].path}:in{order}")}
    for layer in layers:
        inside = {} if parts is None else _addresses(model, layer.path, parts)
        for kind in KINDS:
            address = ":out" if kind == "output" else inside.get(kind)
            if address is None or (kind != "output" and f"{layer.path}.{address.split(':')[0]}" not in modules):
                continue
            path = f"{layer.path}{address}" if kind == "output" else f"{layer.path}.{address}"
            name = f"layer {layer.number} {kind}"
            sites[name] = Site(name, kind, layer.number, f"{path}{order}", layer.run)
    pooler = _pooler(model, modules)
    if pooler is not None:
        sites[POOLER] = Site(POOLER, POOLER, None, pooler)
    if type(model).__name__.endswith(LOGIT_HEADS):
        sites[LOGITS] = Site(LOGITS, LOGITS, None, "")
    return Sites(sites, layers, parts, order.removeprefix(":"), (note,) if note else ())


def _layers(model: Any, stack: str) -> tuple[Layer, ...]:
    """Return the layers, and which run of its module each is."""
    base, family = model.base_model, model.config.model_type
    prefix = "" if base is model else f"{model.base_model_prefix}."
    if family in FAMILIES:
        path = next((path for path in stack_of(family, stack).paths if _has(base, path)), None)
    else:
        path = _list_of_layers(base, int(getattr(model.config, "num_hidden_layers", 0) or 0))
    if path is None:
        raise UsageError(
            f"the layers of a {type(model).__name__} ({family}) cannot be told: it is not in the table of layers, and no list "
            "of modules has as many entries as its config has layers."
        )
    names = [name for name, _ in base.get_submodule(path).named_children()]
    total = int(model.config.num_hidden_layers) if family == "albert" else len(names)
    if not names or not total:
        raise UsageError("a model without layers has no sites in them.")
    groups = [k * len(names) // total for k in range(total)]
    return tuple(Layer(k, f"{prefix}{path}.{names[group]}", k - groups.index(group)) for k, group in enumerate(groups))


def _has(model: Any, path: str) -> bool:
    return path in dict(model.named_modules())


def _list_of_layers(base: Any, count: int) -> str | None:
    """Return the path of the first list of modules with as many entries as the config has layers."""
    from torch import nn

    return next(
        (path for path, module in base.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count),
        None,
    )


def _parts(config: Mapping[str, Any], first: Layer, stack: str) -> tuple[Parts | None, str | None]:
    """Return the parts of a layer by the table of parts, else by the taps of the permutation table; and a note without any."""
    from merge.symmetry.architectures import ARCHITECTURES, spec_for

    family = str(config["model_type"])
    try:
        return parts_of(config, stack), None
    except UsageError:
        pass
    mix = down = None
    if family in ARCHITECTURES and not (family == "albert" and int(config.get("inner_group_num") or 1) > 1):
        try:
            taps = spec_for(config).taps
        except (SpecError, KeyError):
            taps = {}
        for axis, addresses in taps.items():
            for path, side, *_ in (address.split(":") for address in addresses):
                below, kind = _below(path, first.path), re.findall("[a-z]+", axis)[-1]
                if below and side == "in":
                    mix, down = below if kind == "v" else mix, below if kind == "ffn" else down
    if mix and down:
        return Parts(mix, down), None
    return None, f"the parts of a {family} layer are in no table: it has the sites between layers alone"


def _below(path: str, layer: str) -> str | None:
    """Return a module's path below a layer, whatever prefix the base model has in either."""
    tail = ".".join(layer.split(".")[-3:]) if layer.count(".") > 1 else layer
    _, mark, below = path.partition(f"{tail}.")
    return below if mark else None


def _addresses(model: Any, layer: str, parts: Parts) -> dict[str, str]:
    """Return kind -> address below the layer."""
    module = model.get_submodule(layer)
    activation = _activation(module)
    reads = f"{parts.up}:in" if parts.up else f"{parts.down.rpartition('.')[0]}:in"
    addresses = {
        "attention": f"{parts.mix}:out",
        "ffn input": reads,
        "ffn hidden": f"{parts.down}:in",
        "ffn": f"{parts.down}:out",
    }
    if parts.mix_norm:
        addresses["attention norm"] = f"{parts.mix_norm}:out"
    if activation:
        addresses["ffn preactivation"] = f"{activation}:in"
    return addresses


def _activation(layer: Any) -> str | None:
    """Return the path of the one activation module of a layer; None where it has none or several."""
    from torch import nn
    from transformers.activations import ACT2CLS

    classes = {nn.GELU, nn.ReLU, nn.SiLU, nn.Tanh}
    classes |= {entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values()}
    kinds = tuple(each for each in classes if isinstance(each, type))
    paths = [path for path, module in layer.named_modules() if isinstance(module, kinds)]
    return paths[0] if len(paths) == 1 else None


def _pooler(model: Any, modules: frozenset[str]) -> str | None:
    """Return the address of what is read of a whole text: the pooler's output, or what the last layer of the head reads."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    for address in POOLERS:
        for path in (f"{prefix}{address}", address):
            if path.split(":")[0] in modules:
                return path
    if not type(model).__name__.endswith(POOLED_HEADS):
        return None
    return next((address for address in CLASSIFIERS if address.split(":")[0] in modules), None)
