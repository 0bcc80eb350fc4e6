"""MPNet: BERT with one table of relative position biases that all layers add to their attention scores. Post-LN.

The table has a column for each head, so the heads of all layers share one order (`heads`, without a number). The order
inside a head belongs to its layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge.symmetry.architectures.encoder import EMBEDDINGS, EMBEDDINGS_NORM, FEED_FORWARD, POOLER, Family, encoder_spec
from merge.symmetry.architectures.head import ROBERTA_HEADS
from merge.symmetry.rewrites import Rewrites
from merge.symmetry.spec import PermutationSpec

LAYER = {
    "attention.attn.q.weight": "(heads qk{i}) residual'",
    "attention.attn.q.bias": "(heads qk{i})",
    "attention.attn.k.weight": "(heads qk{i}') residual'",
    "attention.attn.k.bias": "(heads qk{i}')",
    "attention.attn.v.weight": "(heads v{i}) residual'",
    "attention.attn.v.bias": "(heads v{i})",
    "attention.attn.o.weight": "residual (heads v{i})'",
    "attention.attn.o.bias": "residual",
    "attention.LayerNorm.weight": "residual=",
    "attention.LayerNorm.bias": "residual",
    **FEED_FORWARD,
    "output.LayerNorm.weight": "residual=",
    "output.LayerNorm.bias": "residual",
}

MPNET = Family(
    name="mpnet",
    stem="MPNet",
    prefix="mpnet",
    heads={end: head for end, head in ROBERTA_HEADS.items() if end != "ForCausalLM"},
    encoder=EMBEDDINGS | EMBEDDINGS_NORM | {"encoder.relative_attention_bias.weight": "- heads"} | POOLER,
    layer=LAYER,
    layer_taps={
        "qk{i}": ("attention.attn.q:out", "attention.attn.k:out"),
        "v{i}": ("attention.attn.o:in",),
        "ffn{i}": ("output.dense:in",),
    },
    attention_heads="heads",
    rewrites=Rewrites(
        keys=("attention.attn.k",),
        values={"attention.attn.v": "attention.attn.o"},
        writers=("attention.attn.o", "output.dense"),
        tables=("embeddings.word_embeddings", "embeddings.position_embeddings"),
    ),
)


def mpnet(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of an MPNet with the task head that the config names."""
    return encoder_spec(MPNET, config)
