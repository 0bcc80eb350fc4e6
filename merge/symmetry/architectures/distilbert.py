"""DistilBERT: BERT under other names, without segments and pooler; its classifier has a hidden layer. Post-LN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge.symmetry.architectures.encoder import EMBEDDINGS_NORM, Family, encoder_spec
from merge.symmetry.architectures.head import (
    BASE_WITHOUT_POOLER,
    LOGITS,
    QUESTION_ANSWERING,
    TOKEN_CLASSIFICATION,
    Head,
)
from merge.symmetry.rewrites import Rewrites
from merge.symmetry.spec import PermutationSpec

LAYER = {
    "attention.q_lin.weight": "(heads{i} qk{i}) residual'",
    "attention.q_lin.bias": "(heads{i} qk{i})",
    "attention.k_lin.weight": "(heads{i} qk{i}') residual'",
    "attention.k_lin.bias": "(heads{i} qk{i}')",
    "attention.v_lin.weight": "(heads{i} v{i}) residual'",
    "attention.v_lin.bias": "(heads{i} v{i})",
    "attention.out_lin.weight": "residual (heads{i} v{i})'",
    "attention.out_lin.bias": "residual",
    "sa_layer_norm.weight": "residual=",
    "sa_layer_norm.bias": "residual",
    "ffn.lin1.weight": "ffn{i} residual'",
    "ffn.lin1.bias": "ffn{i}",
    "ffn.lin2.weight": "residual ffn{i}'",
    "ffn.lin2.bias": "residual",
    "output_layer_norm.weight": "residual=",
    "output_layer_norm.bias": "residual",
}
PRE_CLASSIFIER = {
    "pre_classifier.weight": "pre_classifier residual'",
    "pre_classifier.bias": "pre_classifier",
}
# Hooked before its ReLU: after it some units are zero on every text and correlate with nothing.
PRE_CLASSIFIER_TAPS = {"pre_classifier": ("pre_classifier:out",)}
LANGUAGE_MODEL = {
    "vocab_transform.weight": "{decoded}= residual'",
    "vocab_transform.bias": "{decoded}=",
    "vocab_layer_norm.weight": "{decoded}",
    "vocab_layer_norm.bias": "{decoded}",
    "vocab_projector.weight": "- {decoded}'",
    "vocab_projector.bias": "-",
}

DISTILBERT = Family(
    name="distilbert",
    stem="DistilBert",
    prefix="distilbert",
    heads={
        "Model": BASE_WITHOUT_POOLER,
        "ForSequenceClassification": Head(
            PRE_CLASSIFIER | {"classifier.weight": "labels pre_classifier'", "classifier.bias": "labels"},
            {"logits": "- labels"},
            PRE_CLASSIFIER_TAPS,
        ),
        "ForMultipleChoice": Head(
            PRE_CLASSIFIER | {"classifier.weight": "- pre_classifier'", "classifier.bias": "-"},
            {"logits": "- -"},
            PRE_CLASSIFIER_TAPS,
        ),
        "ForTokenClassification": TOKEN_CLASSIFICATION,
        "ForQuestionAnswering": QUESTION_ANSWERING,
        "ForMaskedLM": Head(LANGUAGE_MODEL, LOGITS),
    },
    encoder={
        "embeddings.word_embeddings.weight": "- residual",
        "embeddings.position_embeddings.weight": "- residual",
        **EMBEDDINGS_NORM,
    },
    layer=LAYER,
    activation="activation",
    groups={"pre_classifier": "positive"},
    layer_path="transformer.layer.{i}",
    taps={},
    layer_taps={
        "qk{i}": ("attention.q_lin:out", "attention.k_lin:out"),
        "v{i}": ("attention.out_lin:in",),
        "ffn{i}": ("ffn.lin2:in",),
    },
    rewrites=Rewrites(
        keys=("attention.k_lin",),
        values={"attention.v_lin": "attention.out_lin"},
        writers=("attention.out_lin", "ffn.lin2"),
        tables=("embeddings.word_embeddings", "embeddings.position_embeddings"),
    ),
)


def distilbert(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a DistilBERT with the task head that the config names."""
    return encoder_spec(DISTILBERT, config, layer_count="n_layers", head_count="n_heads")
