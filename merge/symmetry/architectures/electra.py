"""ELECTRA: generator and discriminator. Post-LN.

Where the embeddings are narrower than the layers, they have an axis of their own, `embedding`, and `embeddings_project`
projects it into the residual stream; where they are not, they are on the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from merge.symmetry.architectures.encoder import (
    EMBEDDINGS,
    EMBEDDINGS_NORM,
    REWRITES,
    Family,
    activation_group,
    encoder_spec,
)
from merge.symmetry.architectures.head import (
    BASE_WITHOUT_POOLER,
    DENSE_SEQUENCE_CLASSIFICATION,
    LOGITS,
    QUESTION_ANSWERING,
    TOKEN_CLASSIFICATION,
    Head,
)
from merge.symmetry.spec import PermutationSpec

PROJECTION = {
    "embeddings_project.weight": "residual {words}'",
    "embeddings_project.bias": "residual",
}
GENERATOR = Head(
    {
        "generator_predictions.dense.weight": "{decoded}= residual'",
        "generator_predictions.dense.bias": "{decoded}=",
        "generator_predictions.LayerNorm.weight": "{decoded}",
        "generator_predictions.LayerNorm.bias": "{decoded}",
        "generator_lm_head.weight": "- {decoded}'",
        "generator_lm_head.bias": "-",
    },
    LOGITS,
)
DISCRIMINATOR = Head(
    {
        "discriminator_predictions.dense.weight": "discriminator residual'",
        "discriminator_predictions.dense.bias": "discriminator",
        "discriminator_predictions.dense_prediction.weight": "- discriminator'",
        "discriminator_predictions.dense_prediction.bias": "-",
    },
    {"logits": "- -"},
    {"discriminator": ("discriminator_predictions.dense_prediction:in",)},
)
MULTIPLE_CHOICE = Head(
    {
        "sequence_summary.summary.weight": "summary residual'",
        "sequence_summary.summary.bias": "summary",
        "classifier.weight": "- summary'",
        "classifier.bias": "-",
    },
    {"logits": "- -"},
    {"summary": ("classifier:in",)},
)
# For configs with `summary_use_proj: false`.
MULTIPLE_CHOICE_UNPROJECTED = Head({"classifier.weight": "- residual'", "classifier.bias": "-"}, {"logits": "- -"})

ELECTRA = Family(
    name="electra",
    stem="Electra",
    prefix="electra",
    heads={
        "Model": BASE_WITHOUT_POOLER,
        "ForSequenceClassification": DENSE_SEQUENCE_CLASSIFICATION,
        "ForTokenClassification": TOKEN_CLASSIFICATION,
        "ForMultipleChoice": MULTIPLE_CHOICE,
        "ForQuestionAnswering": QUESTION_ANSWERING,
        "ForMaskedLM": GENERATOR,
        "ForCausalLM": GENERATOR,
        "ForPreTraining": DISCRIMINATOR,
    },
    encoder=EMBEDDINGS | EMBEDDINGS_NORM | PROJECTION,
    taps={},
    rewrites=REWRITES,
)


def electra(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of an ELECTRA with the task head that the config names."""
    words = "residual" if config["embedding_size"] == config["hidden_size"] else "embedding"
    summary = activation_group(config.get("summary_activation", "gelu"))
    groups = {
        "classifier": "permutation",  # a GELU follows its dense layer, whatever hidden_act is
        "discriminator": activation_group(config.get("hidden_act", "gelu")),
        "summary": summary,
    }
    family = replace(ELECTRA, groups=groups)
    if not config.get("summary_use_proj", True):
        # Without a projection the activation acts on the stream itself.
        if "MultipleChoice" in str(config.get("architectures")) and summary not in ("signed", "linear"):
            family = replace(family, groups={**groups, "residual": "permutation"})
        family = replace(family, heads={**ELECTRA.heads, "ForMultipleChoice": MULTIPLE_CHOICE_UNPROJECTED})
    return encoder_spec(family, config, words)
