"""GPT-2: pre-LN, weights stored as (in, out), queries, keys and values in one tensor.

The output head is the word embedding table or an untied copy; either way it reads the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge.symmetry.architectures.encoder import Family, encoder_spec
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
    "ln_1.weight": "residual=",
    "ln_1.bias": "residual",
    "attn.c_attn.weight": "residual' [(heads{i} qk{i}) | (heads{i} qk{i}') | (heads{i} v{i})]",
    "attn.c_attn.bias": "[(heads{i} qk{i}) | (heads{i} qk{i}') | (heads{i} v{i})]",
    "attn.c_proj.weight": "(heads{i} v{i})' residual",
    "attn.c_proj.bias": "residual",
    "ln_2.weight": "residual=",
    "ln_2.bias": "residual",
    "mlp.c_fc.weight": "residual' ffn{i}",
    "mlp.c_fc.bias": "ffn{i}",
    "mlp.c_proj.weight": "ffn{i}' residual",
    "mlp.c_proj.bias": "residual",
}

CAUSAL_LANGUAGE_MODEL = Head({"lm_head.weight": "- residual'"}, LOGITS)
SCORE = Head({"score.weight": "labels residual'"}, {"logits": "- labels"})

GPT2 = Family(
    name="gpt2",
    stem="GPT2",
    prefix="transformer",
    heads={
        "Model": BASE_WITHOUT_POOLER,
        "LMHeadModel": CAUSAL_LANGUAGE_MODEL,
        "ForSequenceClassification": SCORE,
        "ForTokenClassification": TOKEN_CLASSIFICATION,
        "ForQuestionAnswering": QUESTION_ANSWERING,
    },
    encoder={
        "wte.weight": "- residual",
        "wpe.weight": "- residual",
        "ln_f.weight": "residual=",
        "ln_f.bias": "residual",
    },
    layer=LAYER,
    layer_path="h.{i}",
    taps={},
    layer_taps={
        "[(heads{i} qk{i}) | (heads{i} qk{i}') | (heads{i} v{i})]": ("attn.c_attn:out",),
        "v{i}": ("attn.c_proj:in",),
        "ffn{i}": ("mlp.c_proj:in",),
    },
    activation="activation_function",
    folded={"residual": "orthogonal_one"},
    rewrites=Rewrites(
        keys=("attn.c_attn",),
        values={"attn.c_attn": "attn.c_proj"},
        writers=("attn.c_proj", "mlp.c_proj"),
        tables=("wte", "wpe"),
        norms={"ln_1": ("attn.c_attn",), "ln_2": ("mlp.c_fc",)},
        last="ln_f",
    ),
)


def gpt2(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a GPT-2 with the task head that the config names but GPT2DoubleHeadsModel."""
    return encoder_spec(GPT2, config, layer_count="n_layer", head_count="n_head")
