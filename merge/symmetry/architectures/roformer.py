"""RoFormer: BERT with rotary positions. Post-LN.

Rotary positions rotate each pair of units (2i, 2i + 1) of a query or key by an angle of its own, so the order inside
queries and keys is fixed (of values too, with `rotary_value`). What commutes with these rotations is one complex number
for each pair. `encoder.embed_positions` is the table of sines that all heads share; nothing of it moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from merge.symmetry.architectures.electra import MULTIPLE_CHOICE, MULTIPLE_CHOICE_UNPROJECTED
from merge.symmetry.architectures.encoder import (
    EMBEDDINGS,
    EMBEDDINGS_NORM,
    POST_LN_LAYER,
    Family,
    activation_group,
    encoder_spec,
)
from merge.symmetry.architectures.head import (
    BASE_WITHOUT_POOLER,
    BERT_LANGUAGE_MODEL,
    DENSE_SEQUENCE_CLASSIFICATION,
    QUESTION_ANSWERING,
    TOKEN_CLASSIFICATION,
)
from merge.symmetry.spec import PermutationSpec

LAYER = {
    **POST_LN_LAYER,
    "attention.self.query.weight": "(heads{i} -turn{i}) residual'",
    "attention.self.query.bias": "(heads{i} -turn{i})",
    "attention.self.key.weight": "(heads{i} -turn{i}') residual'",
    "attention.self.key.bias": "(heads{i} -turn{i}')",
}
ROTARY_VALUES = {
    "attention.self.value.weight": "(heads{i} -v{i}) residual'",
    "attention.self.value.bias": "(heads{i} -v{i})",
    "attention.output.dense.weight": "residual (heads{i} -v{i})'",
}

ROFORMER = Family(
    name="roformer",
    stem="RoFormer",
    prefix="roformer",
    heads={
        "Model": BASE_WITHOUT_POOLER,
        "ForMaskedLM": BERT_LANGUAGE_MODEL,
        "ForCausalLM": BERT_LANGUAGE_MODEL,
        "ForSequenceClassification": DENSE_SEQUENCE_CLASSIFICATION,
        "ForTokenClassification": TOKEN_CLASSIFICATION,
        "ForMultipleChoice": MULTIPLE_CHOICE_UNPROJECTED,
        "ForQuestionAnswering": QUESTION_ANSWERING,
    },
    encoder={
        **EMBEDDINGS,
        **EMBEDDINGS_NORM,
        "embeddings_project.weight": "residual {words}'",
        "embeddings_project.bias": "residual",
        "encoder.embed_positions.weight": "- -",
    },
    layer=LAYER,
    taps={},
    layer_taps={
        "(heads{i} -turn{i})": ("attention.self.query:out", "attention.self.key:out"),
        "v{i}": ("attention.output.dense:in",),
        "ffn{i}": ("output.dense:in",),
    },
)
# For configs with `rotary_value: true`.
ROTARY = replace(
    ROFORMER,
    layer=LAYER | ROTARY_VALUES,
    layer_taps={
        "(heads{i} -turn{i})": ("attention.self.query:out", "attention.self.key:out"),
        "(heads{i} -v{i})": ("attention.output.dense:in",),
        "ffn{i}": ("output.dense:in",),
    },
)


def roformer(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a RoFormer with the task head that the config names."""
    words = "residual" if config["embedding_size"] == config["hidden_size"] else "embedding"
    family = ROTARY if config.get("rotary_value") else ROFORMER
    groups = {
        "turn": "rotary_adjacent",
        "v": "rotary_adjacent" if config.get("rotary_value") else "linear",
        "classifier": activation_group(config.get("hidden_act", "gelu")),
        "summary": activation_group(config.get("summary_activation")),
    }
    family = replace(family, groups=groups)
    if config.get("summary_use_proj"):
        family = replace(family, heads={**family.heads, "ForMultipleChoice": MULTIPLE_CHOICE})
    return encoder_spec(family, config, words)
