"""Nomic BERT: post-LN, rotary positions, gated feed-forward layers.

Rotary positions fix the order inside queries and keys; each pair of units (i, i + n/2) takes one complex number.
`gate_proj` is activated, `up_proj` multiplies it and takes scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge.symmetry.architectures.encoder import POOLER, POOLER_TAPS, Family, encoder_spec
from merge.symmetry.architectures.head import (
    BASE_WITHOUT_POOLER,
    BERT_LANGUAGE_MODEL,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Head,
)
from merge.symmetry.spec import PermutationSpec

LAYER = {
    "self_attn.q_proj.weight": "(heads{i} -turn{i}) residual'",
    "self_attn.k_proj.weight": "(heads{i} -turn{i}') residual'",
    "self_attn.v_proj.weight": "(heads{i} v{i}) residual'",
    "self_attn.o_proj.weight": "residual (heads{i} v{i})'",
    "post_attention_layernorm.weight": "residual=",
    "post_attention_layernorm.bias": "residual",
    "mlp.gate_proj.weight": "ffn{i}= residual'",
    "mlp.up_proj.weight": "ffn{i} residual'",
    "mlp.down_proj.weight": "residual ffn{i}'",
    "post_mlp_layernorm.weight": "residual=",
    "post_mlp_layernorm.bias": "residual",
}
LANGUAGE_MODEL = Head(
    {name.replace("LayerNorm", "layer_norm"): line for name, line in BERT_LANGUAGE_MODEL.lines.items()},
    BERT_LANGUAGE_MODEL.outputs,
)

NOMIC_BERT = Family(
    name="nomic_bert",
    stem="NomicBert",
    prefix="nomic_bert",
    heads={
        "Model": BASE_WITHOUT_POOLER,
        "ForMaskedLM": LANGUAGE_MODEL,
        "ForSequenceClassification": SEQUENCE_CLASSIFICATION,
        "ForTokenClassification": TOKEN_CLASSIFICATION,
    },
    encoder={
        "embeddings.word_embeddings.weight": "- residual",
        "embeddings.token_type_embeddings.weight": "- residual",
        "embeddings.LayerNorm.weight": "residual=",
        "embeddings.LayerNorm.bias": "residual",
        **POOLER,
    },
    layer=LAYER,
    layer_path="layers.{i}",
    taps=POOLER_TAPS,
    layer_taps={
        "(heads{i} -turn{i})": ("self_attn.q_proj:out", "self_attn.k_proj:out"),
        "v{i}": ("self_attn.o_proj:in",),
        "ffn{i}": ("mlp.down_proj:in",),
    },
    groups={"turn": "rotary", "ffn": "real"},
)


def nomic_bert(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a Nomic BERT with the task head that the config names."""
    return encoder_spec(NOMIC_BERT, config)
