"""ALBERT: BERT whose layers run the same tensors several times, with narrower embeddings on their own axis. Post-LN.

An axis belongs to a set of tensors, however often it is run: `ffn0` is one axis for all the layers of group 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge.symmetry.architectures.encoder import EMBEDDINGS, EMBEDDINGS_NORM, TABLES, Family, encoder_spec
from merge.symmetry.architectures.head import BERT_HEADS, LOGITS, Head, both
from merge.symmetry.rewrites import Rewrites
from merge.symmetry.spec import PermutationSpec

LAYER = {
    "attention.query.weight": "(heads{i} qk{i}) residual'",
    "attention.query.bias": "(heads{i} qk{i})",
    "attention.key.weight": "(heads{i} qk{i}') residual'",
    "attention.key.bias": "(heads{i} qk{i}')",
    "attention.value.weight": "(heads{i} v{i}) residual'",
    "attention.value.bias": "(heads{i} v{i})",
    "attention.dense.weight": "residual (heads{i} v{i})'",
    "attention.dense.bias": "residual",
    "attention.LayerNorm.weight": "residual=",
    "attention.LayerNorm.bias": "residual",
    "ffn.weight": "ffn{i} residual'",
    "ffn.bias": "ffn{i}",
    "ffn_output.weight": "residual ffn{i}'",
    "ffn_output.bias": "residual",
    "full_layer_layer_norm.weight": "residual=",
    "full_layer_layer_norm.bias": "residual",
}
PROJECTION = {
    "encoder.embedding_hidden_mapping_in.weight": "residual {words}'",
    "encoder.embedding_hidden_mapping_in.bias": "residual",
}
POOLER = {"pooler.weight": "pooler residual'", "pooler.bias": "pooler"}
LANGUAGE_MODEL = Head(
    {
        "predictions.dense.weight": "{decoded}= residual'",
        "predictions.dense.bias": "{decoded}=",
        "predictions.LayerNorm.weight": "{decoded}",
        "predictions.LayerNorm.bias": "{decoded}",
        "predictions.bias": "-",
        "predictions.decoder.weight": "- {decoded}'",
        "predictions.decoder.bias": "-",
    },
    LOGITS,
)
SENTENCE_ORDER = Head({"sop_classifier.classifier.weight": "- pooler'", "sop_classifier.classifier.bias": "-"})
SHARED = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering")

ALBERT = Family(
    name="albert",
    stem="Albert",
    prefix="albert",
    heads={end: BERT_HEADS[end] for end in SHARED}
    | {
        "ForMaskedLM": LANGUAGE_MODEL,
        "ForPreTraining": both(LANGUAGE_MODEL, SENTENCE_ORDER, {"prediction_logits": "- - -", "sop_logits": "- -"}),
    },
    encoder=EMBEDDINGS | EMBEDDINGS_NORM | PROJECTION | POOLER,
    layer=LAYER,
    taps={"pooler": ("pooler_activation:out",)},
    layer_taps={
        "qk{i}": ("attention.query:out", "attention.key:out"),
        "v{i}": ("attention.dense:in",),
        "ffn{i}": ("ffn_output:in",),
    },
    rewrites=Rewrites(
        keys=("attention.key",),
        values={"attention.value": "attention.dense"},
        writers=("attention.dense", "ffn_output"),
        tables=TABLES,
    ),
)


def albert(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of an ALBERT with the task head that the config names."""
    groups, layers = range(int(config["num_hidden_groups"])), range(int(config["inner_group_num"]))
    paths = [f"encoder.albert_layer_groups.{group}.albert_layers.{layer}" for group in groups for layer in layers]
    return encoder_spec(ALBERT, config, words="embedding", layers=paths)
