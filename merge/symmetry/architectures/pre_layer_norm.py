"""BERT-like families with the LayerNorm before each sublayer: Megatron-BERT, RoBERTa-PreLayerNorm, XLM-RoBERTa-XL.

The stream itself is never normalised: embeddings and both output projections write it, each LayerNorm and its readers
read it, and one more LayerNorm follows the last layer. Where the embeddings have no norm of their own, every gain can
be folded into what reads it, and then the stream can be rotated (`folded`). RoBERTa-PreLayerNorm has one, so its stream
is only permuted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from merge.symmetry.architectures.encoder import (
    ATTENTION,
    EMBEDDINGS,
    EMBEDDINGS_NORM,
    FEED_FORWARD,
    POOLER,
    REWRITES,
    Family,
    encoder_spec,
)
from merge.symmetry.architectures.head import BERT_HEADS, ROBERTA_HEADS
from merge.symmetry.spec import PermutationSpec

QUERIES_KEYS_VALUES = ("attention.self.query", "attention.self.key", "attention.self.value")

MEGATRON_BERT = Family(
    name="megatron-bert",
    stem="MegatronBert",
    prefix="bert",
    heads=BERT_HEADS,
    encoder=EMBEDDINGS | {"encoder.ln.weight": "residual=", "encoder.ln.bias": "residual"} | POOLER,
    layer={
        "attention.ln.weight": "residual=",
        "attention.ln.bias": "residual",
        "ln.weight": "residual=",
        "ln.bias": "residual",
        **ATTENTION,
        **FEED_FORWARD,
    },
    folded={"residual": "orthogonal_one"},
    rewrites=replace(
        REWRITES, norms={"attention.ln": QUERIES_KEYS_VALUES, "ln": ("intermediate.dense",)}, last="encoder.ln"
    ),
)
ROBERTA_PRELAYERNORM = Family(
    name="roberta-prelayernorm",
    stem="RobertaPreLayerNorm",
    prefix="roberta_prelayernorm",
    heads=ROBERTA_HEADS,
    encoder=EMBEDDINGS | EMBEDDINGS_NORM | {"LayerNorm.weight": "residual=", "LayerNorm.bias": "residual"} | POOLER,
    layer={
        "attention.LayerNorm.weight": "residual=",
        "attention.LayerNorm.bias": "residual",
        "intermediate.LayerNorm.weight": "residual=",
        "intermediate.LayerNorm.bias": "residual",
        **ATTENTION,
        **FEED_FORWARD,
    },
    rewrites=REWRITES,
)
XLM_ROBERTA_XL = Family(
    name="xlm-roberta-xl",
    stem="XLMRobertaXL",
    prefix="roberta",
    heads=ROBERTA_HEADS,
    encoder=EMBEDDINGS | {"encoder.LayerNorm.weight": "residual=", "encoder.LayerNorm.bias": "residual"} | POOLER,
    layer={
        "attention.self_attn_layer_norm.weight": "residual=",
        "attention.self_attn_layer_norm.bias": "residual",
        "LayerNorm.weight": "residual=",
        "LayerNorm.bias": "residual",
        **ATTENTION,
        **FEED_FORWARD,
    },
    folded={"residual": "orthogonal_one"},
    rewrites=replace(
        REWRITES,
        norms={"attention.self_attn_layer_norm": QUERIES_KEYS_VALUES, "LayerNorm": ("intermediate.dense",)},
        last="encoder.LayerNorm",
    ),
)


def megatron_bert(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a Megatron-BERT with the task head that the config names."""
    return encoder_spec(MEGATRON_BERT, config)


def roberta_prelayernorm(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a RoBERTa-PreLayerNorm with the task head that the config names."""
    return encoder_spec(ROBERTA_PRELAYERNORM, config)


def xlm_roberta_xl(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of an XLM-RoBERTa-XL with the task head that the config names."""
    return encoder_spec(XLM_ROBERTA_XL, config)
