"""ModernBERT: pre-LN, rotary positions, queries, keys and values in one tensor, gated feed-forward layers.

Rotary positions fix the order inside queries and keys; each pair of units (i, i + n/2) takes one complex number.
`mlp.Wi` holds the two halves of the gated layer one after the other, in the same order: the first is activated, the
second multiplies it and takes scales. So does the LayerNorm after the activation of a task head.

The embeddings are normalised, and the first layer has no norm before its attention: the gain of the embeddings' norm
acts on the stream itself, so the stream cannot be rotated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from merge.symmetry.architectures.encoder import Family, encoder_spec
from merge.symmetry.architectures.head import BASE_WITHOUT_POOLER, LOGITS, SPANS, Head
from merge.symmetry.spec import PermutationSpec

LAYER = {
    "attn_norm.weight": "residual=",
    "attn_norm.bias": "residual",
    "attn.Wqkv.weight": "[(heads{i} -turn{i}) | (heads{i} -turn{i}') | (heads{i} v{i})] residual'",
    "attn.Wqkv.bias": "[(heads{i} -turn{i}) | (heads{i} -turn{i}') | (heads{i} v{i})]",
    "attn.Wo.weight": "residual (heads{i} v{i})'",
    "attn.Wo.bias": "residual",
    "mlp_norm.weight": "residual=",
    "mlp_norm.bias": "residual",
    "mlp.Wi.weight": "[ffn{i}= | ffn{i}] residual'",
    "mlp.Wi.bias": "[ffn{i}= | ffn{i}]",
    "mlp.Wo.weight": "residual ffn{i}'",
    "mlp.Wo.bias": "residual",
}


def _dense(axis: str) -> dict[str, str]:
    """Return the lines of the hidden layer that every task head has before its last layer."""
    return {
        "head.dense.weight": f"{axis}= residual'",
        "head.dense.bias": f"{axis}=",
        "head.norm.weight": axis,
        "head.norm.bias": axis,
    }


LABELS = _dense("classifier") | {"classifier.weight": "labels classifier'", "classifier.bias": "labels"}
UNNAMED = _dense("classifier") | {"classifier.weight": "- classifier'", "classifier.bias": "-"}

MODERNBERT = Family(
    name="modernbert",
    stem="ModernBert",
    prefix="model",
    heads={
        "Model": BASE_WITHOUT_POOLER,
        "ForMaskedLM": Head(
            _dense("{decoded}") | {"decoder.weight": "- {decoded}'", "decoder.bias": "-"},
            LOGITS,
        ),
        "ForSequenceClassification": Head(LABELS, {"logits": "- labels"}),
        "ForTokenClassification": Head(LABELS, {"logits": "- - labels"}),
        "ForMultipleChoice": Head(UNNAMED, {"logits": "- -"}),
        "ForQuestionAnswering": Head(UNNAMED, SPANS),
    },
    encoder={
        "embeddings.tok_embeddings.weight": "- residual",
        "embeddings.norm.weight": "residual=",
        "embeddings.norm.bias": "residual",
        "final_norm.weight": "residual=",
        "final_norm.bias": "residual",
    },
    layer=LAYER,
    layer_path="layers.{i}",
    taps={},
    layer_taps={
        "[(heads{i} -turn{i}) | (heads{i} -turn{i}) | (heads{i} v{i})]": ("attn.Wqkv:out",),
        "v{i}": ("attn.Wo:in",),
        "ffn{i}": ("mlp.Wo:in",),
    },
    groups={"turn": "rotary", "ffn": "real", "classifier": "real"},
)

# As PermutationSpec.bound: the rotations of queries and keys by their positions are computed in float32.
BOUND = 1e-5


def modernbert(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a ModernBERT with the task head that the config names."""
    return replace(encoder_spec(MODERNBERT, config), bound=BOUND)
