"""Llama, Mistral, Qwen2 and Qwen3: pre-LN with RMSNorm, rotary positions, grouped queries, gated feed-forward layers.

Grouped queries: `heads0` counts key/value heads and `queries0` the query heads of each. A key/value head moves together
with the query heads that read it, and these may be permuted among themselves. The order inside values is one for all
query heads that read them.

Rotary positions rotate each pair of units (i, i + n/2) by an angle of its own, so the order inside queries and keys is
fixed; a pair of a key head and of the query heads that read it takes one complex number. Qwen3 normalises queries and
keys with gains that all heads share: then only a sign for each pair is left.

RMSNorm subtracts no mean, so every unit of the stream takes a sign of its own. In the gated feed-forward layer the
activation acts on `gate_proj`; `up_proj` multiplies it and takes scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from merge.symmetry.architectures.encoder import Family, encoder_spec
from merge.symmetry.architectures.gpt2 import CAUSAL_LANGUAGE_MODEL, SCORE
from merge.symmetry.architectures.head import BASE_WITHOUT_POOLER, QUESTION_ANSWERING, Head
from merge.symmetry.rewrites import Rewrites
from merge.symmetry.spec import PermutationSpec

LAYER = {
    "input_layernorm.weight": "residual=",
    "self_attn.q_proj.weight": "(heads{i} queries{i} -turn{i}) residual'",
    "self_attn.q_proj.bias": "(heads{i} queries{i} -turn{i})",
    "self_attn.k_proj.weight": "(heads{i} -turn{i}') residual'",
    "self_attn.k_proj.bias": "(heads{i} -turn{i}')",
    "self_attn.v_proj.weight": "(heads{i} v{i}) residual'",
    "self_attn.v_proj.bias": "(heads{i} v{i})",
    "self_attn.o_proj.weight": "residual (heads{i} queries{i} v{i})'",
    "self_attn.o_proj.bias": "residual",
    "self_attn.q_norm.weight": "-",
    "self_attn.k_norm.weight": "-",
    "post_attention_layernorm.weight": "residual=",
    "mlp.gate_proj.weight": "ffn{i}= residual'",
    "mlp.gate_proj.bias": "ffn{i}=",
    "mlp.up_proj.weight": "ffn{i} residual'",
    "mlp.up_proj.bias": "ffn{i}",
    "mlp.down_proj.weight": "residual ffn{i}'",
    "mlp.down_proj.bias": "residual",
}

TOKEN_SCORE = Head({"score.weight": "labels residual'", "score.bias": "labels"}, {"logits": "- - labels"})

LLAMA = Family(
    name="llama",
    stem="Llama",
    prefix="model",
    heads={
        "Model": BASE_WITHOUT_POOLER,
        "ForCausalLM": CAUSAL_LANGUAGE_MODEL,
        "ForSequenceClassification": SCORE,
        "ForTokenClassification": TOKEN_SCORE,
        "ForQuestionAnswering": QUESTION_ANSWERING,
    },
    encoder={"embed_tokens.weight": "- residual", "norm.weight": "residual="},
    layer=LAYER,
    layer_path="layers.{i}",
    taps={},
    layer_taps={
        "(heads{i} queries{i} -turn{i})": ("self_attn.q_proj:out",),
        "(heads{i} -turn{i})": ("self_attn.k_proj:out",),
        "v{i}": ("self_attn.v_proj:out",),
        "(heads{i} queries{i} v{i})": ("self_attn.o_proj:in",),
        "ffn{i}": ("mlp.down_proj:in",),
    },
    groups={"residual": "signed", "turn": "rotary", "ffn": "real"},
    folded={"residual": "orthogonal"},
    rewrites=Rewrites(
        norms={
            "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
        },
        last="norm",
    ),
)
STEMS = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
# As PermutationSpec.bound: the models compute their norms in float32, layer after layer.
BOUND = 1e-4


def llama(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a Llama, Mistral, Qwen2 or Qwen3 with the task head that the config names."""
    name = str(config["model_type"])
    answers_questions = str((config.get("architectures") or ["?"])[0]).endswith("ForQuestionAnswering")
    family = replace(
        LLAMA, name=name, stem=STEMS[name], prefix="transformer" if answers_questions and name != "mistral" else "model"
    )
    if name == "qwen3":
        family = replace(family, groups={**family.groups, "turn": "rotary_sign"})
    groups = config.get("num_key_value_heads") or config["num_attention_heads"]
    spec = encoder_spec(family, {**config, "num_key_value_heads": groups}, head_count="num_key_value_heads")
    queries = int(config["num_attention_heads"]) // int(groups)
    sizes = {f"queries{i}": queries for i in range(int(config["num_hidden_layers"]))}
    return replace(spec, sizes={**spec.sizes, **sizes}, bound=BOUND)
