"""DeBERTa (v1): post-LN, relative positions, queries, keys and values of each head next to one another in one tensor.

`rel_embeddings` are on the residual stream and have projections of their own: `pos_proj` makes keys of them,
`pos_q_proj` queries. There is no key bias. The model computes its LayerNorms in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from merge.symmetry.architectures.encoder import (
    EMBEDDINGS,
    FEED_FORWARD,
    POST_LN,
    Family,
    activation_group,
    encoder_spec,
)
from merge.symmetry.architectures.head import (
    BASE_WITHOUT_POOLER,
    BERT_LANGUAGE_MODEL,
    QUESTION_ANSWERING,
    TOKEN_CLASSIFICATION,
    Head,
)
from merge.symmetry.spec import PermutationSpec

OUTPUT = {
    "attention.output.dense.weight": "residual (heads{i} v{i})'",
    "attention.output.dense.bias": "residual",
    **POST_LN,
    **FEED_FORWARD,
}
LAYER = {
    "attention.self.in_proj.weight": "(heads{i} [qk{i} | qk{i}' | v{i}]) residual'",
    "attention.self.q_bias": "(heads{i} qk{i})",
    "attention.self.v_bias": "(heads{i} v{i})",
    "attention.self.pos_proj.weight": "(heads{i} qk{i}') residual'",
    "attention.self.pos_q_proj.weight": "(heads{i} qk{i}) residual'",
    "attention.self.pos_q_proj.bias": "(heads{i} qk{i})",
    # Talking heads: the scores of all heads are mixed before the softmax, its results mixed again after it.
    "attention.self.head_logits_proj.weight": "talking{i} heads{i}'",
    "attention.self.head_weights_proj.weight": "heads{i} talking{i}'",
    **OUTPUT,
}

ENCODER = EMBEDDINGS | {
    "embeddings.embed_proj.weight": "residual {words}'",
    "embeddings.LayerNorm.weight": "residual=",
    "embeddings.LayerNorm.bias": "residual",
    "encoder.rel_embeddings.weight": "- residual",
}
POOLER = {"pooler.dense.weight": "pooler residual'", "pooler.dense.bias": "pooler"}
POOLER_TAP = {"pooler": ("classifier:in",)}
HEADS = {
    "Model": BASE_WITHOUT_POOLER,
    "ForMaskedLM": BERT_LANGUAGE_MODEL,
    "ForSequenceClassification": Head(
        POOLER | {"classifier.weight": "labels pooler'", "classifier.bias": "labels"},
        {"logits": "- labels"},
        POOLER_TAP,
    ),
    "ForTokenClassification": TOKEN_CLASSIFICATION,
    "ForQuestionAnswering": QUESTION_ANSWERING,
}

DEBERTA = Family(
    name="deberta",
    stem="Deberta",
    prefix="deberta",
    heads=HEADS,
    encoder=ENCODER,
    layer=LAYER,
    taps={},
    layer_taps={
        "(heads{i} [qk{i} | qk{i}' | v{i}])": ("attention.self.in_proj:out",),
        "v{i}": ("attention.output.dense:in",),
        "ffn{i}": ("output.dense:in",),
    },
)
# As PermutationSpec.bound: the LayerNorms round to float32, layer after layer.
BOUND = 1e-4


def deberta(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a DeBERTa with the task head that the config names."""
    talking = {"talking{i}": ("attention.self.head_logits_proj:out",)} if config.get("talking_head") else {}
    family = replace(DEBERTA, layer_taps={**DEBERTA.layer_taps, **talking}, groups=groups_of(config))
    return replace(encoder_spec(family, config, word_axis(config)), bound=BOUND)


def groups_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the groups of a DeBERTa's axes that differ from those of other families.

    Only a projection reads embeddings that are narrower than the stream, so they take every invertible map. A tied
    decoder reads the same table in role `in` and would need the inverse transpose: then only signs are left, which are
    their own.
    """
    decoder = "MaskedLM" in str(config.get("architectures")) and config.get("tie_word_embeddings", True)
    pooler = activation_group(config.get("pooler_hidden_act", "gelu"))
    return {"pooler": pooler, "embedding": "signed" if decoder else "linear"}


def word_axis(config: Mapping[str, Any]) -> str:
    """Return the axis of the embedding tables: `embedding` where a projection widens them, else `residual`."""
    width = config.get("embedding_size") or config["hidden_size"]
    return "residual" if width == config["hidden_size"] else "embedding"
