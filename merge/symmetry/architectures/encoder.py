"""Encoder: what the BERT-like families share, and how a family's short table becomes a spec.

One permutation of the residual stream for the whole model: after the LayerNorms (post-LN) their gains sit in the
stream, before the sublayers (pre-LN) they read it; either way they are permuted along. Q and K share their inner
order, V and the output projection theirs; a head moves as one block of all four. The key bias adds a constant to every
score of a query, which softmax cancels: its order can never show in the outputs.

Besides permutations: one sign for the whole stream, because a LayerNorm is odd but for its bias (one rotation of it where
the gains before the sublayers are folded away); every invertible map inside a head, between Q and K, and between V and the
output projection; on hidden units what their activation commutes with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merge.errors import SpecError, nearest
from merge.symmetry.architectures.head import Head
from merge.symmetry.rewrites import NO_REWRITES, Rewrites
from merge.symmetry.spec import PermutationSpec

ATTENTION = {
    "attention.self.query.weight": "(heads{i} qk{i}) residual'",
    "attention.self.query.bias": "(heads{i} qk{i})",
    "attention.self.key.weight": "(heads{i} qk{i}') residual'",
    "attention.self.key.bias": "(heads{i} qk{i}')",
    "attention.self.value.weight": "(heads{i} v{i}) residual'",
    "attention.self.value.bias": "(heads{i} v{i})",
    "attention.output.dense.weight": "residual (heads{i} v{i})'",
    "attention.output.dense.bias": "residual",
}
FEED_FORWARD = {
    "intermediate.dense.weight": "ffn{i} residual'",
    "intermediate.dense.bias": "ffn{i}",
    "output.dense.weight": "residual ffn{i}'",
    "output.dense.bias": "residual",
}
POST_LN = {
    "attention.output.LayerNorm.weight": "residual=",
    "attention.output.LayerNorm.bias": "residual",
    "output.LayerNorm.weight": "residual=",
    "output.LayerNorm.bias": "residual",
}
POST_LN_LAYER = ATTENTION | POST_LN | FEED_FORWARD

LAYER_TAPS = {
    "qk{i}": ("attention.self.query:out", "attention.self.key:out"),
    "v{i}": ("attention.output.dense:in",),
    "ffn{i}": ("output.dense:in",),
}

EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "- {words}",
    "embeddings.position_embeddings.weight": "- {words}",
    "embeddings.token_type_embeddings.weight": "- {words}",
}
EMBEDDINGS_NORM = {
    "embeddings.LayerNorm.weight": "{words}=",
    "embeddings.LayerNorm.bias": "{words}",
}
POOLER = {
    "pooler.dense.weight": "pooler residual'",
    "pooler.dense.bias": "pooler",
}
POOLER_TAPS = {"pooler": ("pooler.activation:out",)}

TABLES = ("embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.token_type_embeddings")
REWRITES = Rewrites(
    keys=("attention.self.key",),
    values={"attention.self.value": "attention.output.dense"},
    writers=("attention.output.dense", "output.dense"),
    tables=TABLES,
)

# Groups of the axes that families share, by kind. Of `transform`: the norm behind a head's activation takes any scale.
GROUPS = {
    "residual": "sign",
    "embedding": "sign",
    "qk": "linear",
    "v": "linear",
    "pooler": "signed",
    "transform": "real",
}
# Activation -> the group of units that it commutes with; others commute with permutations alone.
ACTIVATIONS = {
    "relu": "positive",
    "leaky_relu": "positive",
    "tanh": "signed",
    "linear": "linear",
    "None": "linear",
}

_PLAIN_AXIS = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Family:
    """A family of encoders: names and lines of its tensors. Paths of the encoder are without its prefix.

    Attributes:
        name: the model type.
        stem: what its class names begin with.
        prefix: of the encoder's tensors in a model with a head.
        heads: end of the class name -> head.
        encoder: tensor outside the layers -> notation.
        layer: tensor of layer i -> notation, after the layer's path.
        layer_path: of layer i.
        taps: axis -> sites outside the layers.
        layer_taps: axis -> sites after the layer's path.
        attention_heads: the axis of the attention heads of layer i; one for all where something shared reads them.
        activation: the config's key of the activation between the feed-forward layers.
        groups: kind of axis -> group, where it is not that of GROUPS, of the head or of the activation.
        folded: kind of axis -> group once the norms' gains are folded into what reads them, where that can be done.
        rewrites: how its weights can change without its function changing; by default nothing is claimed.
    """

    name: str
    stem: str
    prefix: str
    heads: Mapping[str, Head]
    encoder: Mapping[str, str] = field(default_factory=lambda: EMBEDDINGS | EMBEDDINGS_NORM | POOLER)
    layer: Mapping[str, str] = field(default_factory=lambda: POST_LN_LAYER)
    layer_path: str = "encoder.layer.{i}"
    taps: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: POOLER_TAPS)
    layer_taps: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: LAYER_TAPS)
    attention_heads: str = "heads{i}"
    activation: str = "hidden_act"
    groups: Mapping[str, str] = field(default_factory=dict)
    folded: Mapping[str, str] = field(default_factory=dict)
    rewrites: Rewrites = NO_REWRITES


def encoder_spec(
    family: Family,
    config: Mapping[str, Any],
    words: str = "residual",
    layers: Sequence[str] | None = None,
    layer_count: str = "num_hidden_layers",
    head_count: str = "num_attention_heads",
) -> PermutationSpec:
    """Return the spec of a family with the task head that the config names.

    Args:
        family: its table.
        config: config.json, complete.
        words: the axis of the word embedding table.
        layers: the paths of the layers' tensors; by default layer_path for each of the layers.
        layer_count, head_count: the config's keys of the number of layers and of attention heads.
    Raises:
        SpecError: the family has no such head; names the nearest.
    Source: the exact symmetries of encoders; Ainsworth et al. 2023, arXiv:2209.04836, appendix A for the form.
    """
    head = _head(family, config)
    if layers is None:
        layers = [family.layer_path.format(i=i) for i in range(int(config[layer_count]))]
    decoded = words if config.get("tie_word_embeddings", True) else "transform"
    lines = {f"{family.prefix}.{name}": line.format(words=words) for name, line in family.encoder.items()}
    taps = {axis: tuple(f"{family.prefix}.{site}" for site in sites) for axis, sites in family.taps.items()}
    for i, path in enumerate(layers):
        lines |= {f"{family.prefix}.{path}.{name}": line.format(i=i) for name, line in family.layer.items()}
        taps |= {
            axis.format(i=i): tuple(f"{family.prefix}.{path}.{site}" for site in sites)
            for axis, sites in family.layer_taps.items()
        }
    lines |= {name: line.format(words=words, decoded=decoded) for name, line in head.lines.items()}
    groups = (
        GROUPS | {"ffn": activation_group(config.get(family.activation, "gelu"))} | {**head.groups, **family.groups}
    )
    # A head whose hidden units lie on the stream, as one tied to the embeddings has them, gives the stream their basis.
    hidden = decoded == words and any("{decoded}" in line for line in head.lines.values())
    return PermutationSpec(
        family=family.name,
        lines=lines,
        sizes={family.attention_heads.format(i=i): int(config[head_count]) for i in range(len(layers))},
        taps={**_norm_taps(lines), **taps, **head.taps},
        outputs=head.outputs,
        named=frozenset({"labels"}),
        groups=groups,
        folded={} if hidden else family.folded,
        rewrites=family.rewrites,
    )


def activation_group(name: object) -> str:
    """Return the group that commutes with an activation, by transformers' name for it; None is no activation."""
    return ACTIVATIONS.get(str(name), "permutation")


def _head(family: Family, config: Mapping[str, Any]) -> Head:
    heads = {family.stem + end: head for end, head in family.heads.items()}
    architecture = str((config.get("architectures") or ["?"])[0])
    if architecture not in heads:
        raise SpecError(f"the {family.name} table has no task head {architecture!r}.{nearest(architecture, heads)}")
    return heads[architecture]


def _norm_taps(lines: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return axis -> outputs of the LayerNorms on it: those whose weight has one axis, and no head's blocks."""
    sites: dict[str, list[str]] = {}
    for name, line in lines.items():
        if name.endswith(".weight") and _PLAIN_AXIS.fullmatch(line.removesuffix("=")):
            sites.setdefault(line.removesuffix("="), []).append(name.removesuffix(".weight") + ":out")
    return {axis: tuple(found) for axis, found in sites.items()}
