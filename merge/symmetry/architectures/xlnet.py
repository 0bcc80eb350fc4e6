"""XLNet: post-LN, attention weights with a dimension for the heads, relative positions.

`r` reads the table of sines, whose order is fixed; `seg_embed` adds to the keys, and the three biases add to the
queries. The attention is not built of linear modules, so no hook sees the units inside a head: heads are matched by
weights only. Activations are (tokens, texts, units).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from merge.symmetry.architectures.encoder import Family, activation_group, encoder_spec
from merge.symmetry.architectures.head import (
    BASE_WITHOUT_POOLER,
    LOGITS,
    QUESTION_ANSWERING,
    TOKEN_CLASSIFICATION,
    Head,
)
from merge.symmetry.spec import PermutationSpec

# Doubled braces become single ones of the notation when the layer's number is filled in.
LAYER = {
    "rel_attn.q": "residual' {{heads{i} qk{i}}}",
    "rel_attn.k": "residual' {{heads{i} qk{i}}}'",
    "rel_attn.v": "residual' {{heads{i} v{i}}}",
    "rel_attn.o": "residual {{heads{i} v{i}}}'",
    "rel_attn.r": "- {{heads{i} qk{i}}}'",
    "rel_attn.r_r_bias": "{{heads{i} qk{i}}}",
    "rel_attn.r_s_bias": "{{heads{i} qk{i}}}",
    "rel_attn.r_w_bias": "{{heads{i} qk{i}}}",
    "rel_attn.seg_embed": "- {{heads{i} qk{i}}}'",
    "rel_attn.layer_norm.weight": "residual=",
    "rel_attn.layer_norm.bias": "residual",
    "ff.layer_1.weight": "ffn{i} residual'",
    "ff.layer_1.bias": "ffn{i}",
    "ff.layer_2.weight": "residual ffn{i}'",
    "ff.layer_2.bias": "residual",
    "ff.layer_norm.weight": "residual=",
    "ff.layer_norm.bias": "residual",
}


def _summary(row: str) -> Head:
    return Head(
        {
            "sequence_summary.summary.weight": "summary residual'",
            "sequence_summary.summary.bias": "summary",
            "logits_proj.weight": f"{row} summary'",
            "logits_proj.bias": row,
        },
        {"logits": f"- {row}"},
        {"summary": ("logits_proj:in",)},
    )


XLNET = Family(
    name="xlnet",
    stem="XLNet",
    prefix="transformer",
    heads={
        "Model": BASE_WITHOUT_POOLER,
        "LMHeadModel": Head({"lm_loss.weight": "- residual'", "lm_loss.bias": "-"}, LOGITS),
        "ForSequenceClassification": _summary("labels"),
        "ForTokenClassification": TOKEN_CLASSIFICATION,
        "ForMultipleChoice": _summary("-"),
        "ForQuestionAnsweringSimple": QUESTION_ANSWERING,
    },
    encoder={"mask_emb": "- - residual", "word_embedding.weight": "- residual"},
    layer=LAYER,
    layer_path="layer.{i}",
    taps={},
    layer_taps={"ffn{i}": ("ff.layer_2:in",)},
    activation="ff_activation",
)


# As PermutationSpec.bound: transformers makes the table of sines in float32, so the model runs in no other dtype. With masks
# that hide whole texts the outputs of a random model differ little from one another, and rounding is 2e-4 of that.
BOUND = 5e-4


def xlnet(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of an XLNet with the task head that the config names but the beam search of XLNetForQuestionAnswering."""
    family = replace(XLNET, groups={"summary": activation_group(config.get("summary_activation", "tanh"))})
    spec = encoder_spec(family, config, layer_count="n_layer", head_count="n_head")
    taps = {
        axis: tuple(f"{site}:time" if site.startswith("transformer.") else site for site in sites)
        for axis, sites in spec.taps.items()
    }
    return replace(spec, taps=taps, bound=BOUND, dtype="float32")
