"""ModernBERT: pre-LN after a norm of the embeddings, rotary positions, queries, keys and values in one tensor, gated units.

Rotary positions fix the order inside queries and keys. `mlp.Wi` holds the gated halves end to end, in one order. The first
layer has no norm before its attention: the embeddings come normalised, so the gain of their norm lies in the stream.

Pairs of places (i, i + n/2) inside queries and keys take one complex number. The first half of `mlp.Wi` is activated, the
second multiplies it and takes scales; so does the norm behind a head's activation.
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
    """Return the hidden layer that stands before every task's last one."""
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
        "[(heads{i} -) | (heads{i} -) | (heads{i} v{i})]": ("attn.Wqkv:out",),
        "v{i}": ("attn.Wo:in",),
        "ffn{i}": ("mlp.Wo:in",),
    },
    groups={"turn": "rotary", "ffn": "real", "classifier": "real"},
)

# Of outputs in standard deviations: queries and keys are turned by their positions in float32.
BOUND = 1e-5


def modernbert(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a ModernBERT with any of its task heads."""
    return replace(encoder_spec(MODERNBERT, config), bound=BOUND)
