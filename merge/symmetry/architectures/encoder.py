"""The table of a BERT-like encoder: which axis each tensor has, and how a family's short table becomes a spec.

Read ATTENTION, FEED_FORWARD, POST_LN and EMBEDDINGS below with `merge.symmetry.notation` beside them; `{i}` is the
number of the layer. Six kinds of axes:

    residual   the residual stream, one order for the whole model. Every sublayer adds to it, so all that write it and
               all that read it must agree: embeddings, output projections, readers, LayerNorms.
    heads{i}   the attention heads of layer i. A head moves as one block of query, key, value and output weights.
    qk{i}      the units inside a head that queries and keys share: a score is their dot product.
    v{i}       the units inside a head that values and the output projection share.
    ffn{i}     the hidden units of the feed-forward layer.
    pooler     the hidden units between the pooler and the classifier.

What may act on each, besides a permutation (`merge.symmetry.groups`):

    residual   one sign for the whole stream: LayerNorm(-x) with the same gain and the bias negated is -LayerNorm(x).
               After a LayerNorm (post-LN) the gain g is part of the stream, and diag(g) commutes with no rotation unless all
               gains are equal. Where the LayerNorm is before the sublayer (pre-LN), g can be folded into what reads it,
               and then every rotation that keeps the mean is a symmetry (`folded`).
    qk, v      every invertible map G: q^T k = (G q)^T (G^-T k), and W_O W_V = (W_O G^-1) (G W_V).
    ffn        what commutes with the activation: GELU with nothing, ReLU with positive scales, tanh (odd) with signs.
    pooler     signs, because its activation is tanh.

The bias of the keys is inert: it adds q . b to every score of a query q, and softmax ignores a constant. Its order can
never show in the outputs; it is in the table because it moves with its axis all the same.
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

# Queries write the axis qk and keys read it (the mark '): a map G on the queries needs G^-T on the keys.
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
# Gains multiply the units one by one, so they are only permuted (the mark =); the bias is added and takes the sign.
POST_LN = {
    "attention.output.LayerNorm.weight": "residual=",
    "attention.output.LayerNorm.bias": "residual",
    "output.LayerNorm.weight": "residual=",
    "output.LayerNorm.bias": "residual",
}
POST_LN_LAYER = ATTENTION | POST_LN | FEED_FORWARD

# Where the activations of an axis can be hooked, for matching by activations.
LAYER_TAPS = {
    "qk{i}": ("attention.self.query:out", "attention.self.key:out"),
    "v{i}": ("attention.output.dense:in",),
    "ffn{i}": ("output.dense:in",),
}

# The order of words, positions and segments is fixed. `{words}` is `residual`, or `embedding` in families whose word
# embeddings are narrower than the stream and projected into it.
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

# The freedom of these weights that no output shows; see Rewrites.
TABLES = ("embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.token_type_embeddings")
REWRITES = Rewrites(
    keys=("attention.self.key",),
    values={"attention.self.value": "attention.output.dense"},
    writers=("attention.output.dense", "output.dense"),
    tables=TABLES,
)

# Groups of the axes that families share, by kind. `transform` is the hidden layer of a language model's head: a
# LayerNorm follows its activation, and the gain and bias of that norm take any scale.
GROUPS = {
    "residual": "sign",
    "embedding": "sign",
    "qk": "linear",
    "v": "linear",
    "pooler": "signed",
    "transform": "real",
}
# Activation -> the group that commutes with it; all others (GELU, SiLU) commute with permutations alone.
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
    """A family of encoders: the names and lines of its tensors. Names are given without the prefix of the base model.

    Attributes:
        name: the model type.
        stem: the beginning of its class names: `Bert` of `BertForMaskedLM`.
        prefix: of the encoder's tensors in a model with a task head: `bert` of `bert.encoder.layer.0...`.
        heads: end of the class name -> task head.
        encoder: tensor outside the layers -> notation.
        layer: tensor of layer i, named below the layer's path -> notation.
        layer_path: the path of layer i.
        taps: axis -> sites of its activations outside the layers, as in PermutationSpec.
        layer_taps: the same in layer i, named below the layer's path.
        attention_heads: the axis of the attention heads of layer i; `heads` where all layers must share one order of
            heads.
        activation: the config key of the activation of the feed-forward layers.
        groups: kind of axis -> group, where it differs from GROUPS, from the task head's and from the activation's.
        folded: kind of axis -> group once the gains of the norms are folded into their readers; empty if they cannot
            be.
        rewrites: how its weights can change without changing its function; by default nothing is claimed.
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
        layers: the path of each layer; by default `layer_path` for every layer that the config counts.
        layer_count, head_count: the config keys of the number of layers and of attention heads.
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
    # A tied decoder reads the head's hidden units through the word embeddings, so they share the stream's axis. An
    # activation acts on each of them alone: the stream cannot be rotated.
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
    """Return the group that commutes with an activation, named as in transformers; None is no activation."""
    return ACTIVATIONS.get(str(name), "permutation")


def _head(family: Family, config: Mapping[str, Any]) -> Head:
    heads = {family.stem + end: head for end, head in family.heads.items()}
    architecture = str((config.get("architectures") or ["?"])[0])
    if architecture not in heads:
        raise SpecError(f"the {family.name} table has no task head {architecture!r}.{nearest(architecture, heads)}")
    return heads[architecture]


def _norm_taps(lines: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return axis -> sites of the outputs of its LayerNorms: modules whose weight has this axis alone."""
    sites: dict[str, list[str]] = {}
    for name, line in lines.items():
        if name.endswith(".weight") and _PLAIN_AXIS.fullmatch(line.removesuffix("=")):
            sites.setdefault(line.removesuffix("="), []).append(name.removesuffix(".weight") + ":out")
    return {axis: tuple(modules) for axis, modules in sites.items()}
