"""ViT, DeiT and BEiT: pre-LN encoders of image patches.

The order of channels, pixels and patch positions is fixed; the class token, the positions and the output of the patch
convolution are on the residual stream. BEiT scales what each sublayer writes, and adds a bias to the scores by relative
position, with a column for each head: one table for each layer, or one for all, whose heads then share one order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from merge.symmetry.architectures.encoder import POOLER, POOLER_TAPS, Family, activation_group, encoder_spec
from merge.symmetry.architectures.head import Head
from merge.symmetry.rewrites import Rewrites
from merge.symmetry.spec import PermutationSpec

EMBEDDINGS = {
    "embeddings.cls_token": "- - residual",
    "embeddings.distillation_token": "- - residual",
    "embeddings.mask_token": "- - residual",
    "embeddings.position_embeddings": "- - residual",
    "embeddings.patch_embeddings.projection.weight": "residual - - -",
    "embeddings.patch_embeddings.projection.bias": "residual",
    "layernorm.weight": "residual=",
    "layernorm.bias": "residual",
}
NORMS = {
    "layernorm_before.weight": "residual=",
    "layernorm_before.bias": "residual",
    "layernorm_after.weight": "residual=",
    "layernorm_after.bias": "residual",
}
LAYER = {
    "attention.q_proj.weight": "({heads} qk{i}) residual'",
    "attention.q_proj.bias": "({heads} qk{i})",
    "attention.k_proj.weight": "({heads} qk{i}') residual'",
    "attention.k_proj.bias": "({heads} qk{i}')",
    "attention.v_proj.weight": "({heads} v{i}) residual'",
    "attention.v_proj.bias": "({heads} v{i})",
    "attention.o_proj.weight": "residual ({heads} v{i})'",
    "attention.o_proj.bias": "residual",
    "mlp.fc1.weight": "ffn{i} residual'",
    "mlp.fc1.bias": "ffn{i}",
    "mlp.fc2.weight": "residual ffn{i}'",
    "mlp.fc2.bias": "residual",
    **NORMS,
    "lambda_1": "residual=",
    "lambda_2": "residual=",
    "relative_position_bias.relative_position_bias_table": "- {heads}",
}
SHARED_BIAS = (
    "shared_position_bias.relative_position_bias_table",
    "encoder.relative_position_bias.relative_position_bias_table",
)

BASE = Head(outputs={"last_hidden_state": "- - residual", "pooler_output": "- pooler"})
# BEiT's pooler takes the mean over patches and normalises it: its output is on the residual stream.
BEIT_BASE = Head(outputs={"last_hidden_state": "- - residual", "pooler_output": "- residual"})
CLASSIFIER = Head({"classifier.weight": "labels residual'", "classifier.bias": "labels"}, {"logits": "- labels"})
TEACHER = Head(
    {
        "cls_classifier.weight": "labels residual'",
        "cls_classifier.bias": "labels",
        "distillation_classifier.weight": "labels residual'",
        "distillation_classifier.bias": "labels",
    },
    {"logits": "- labels", "cls_logits": "- labels", "distillation_logits": "- labels"},
)
# Each module under its older name and its present one in transformers.
REWRITES = Rewrites(
    keys=("attention.attention.key", "attention.k_proj"),
    values={
        "attention.attention.value": "attention.output.dense",
        "attention.v_proj": "attention.o_proj",
    },
    writers=("attention.output.dense", "output.dense", "attention.o_proj", "mlp.fc2"),
    norms={
        "layernorm_before": (
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
            "attention.q_proj",
            "attention.k_proj",
            "attention.v_proj",
        ),
        "layernorm_after": ("intermediate.dense", "mlp.fc1"),
    },
    last="layernorm",
)
IMAGE_MODELS = {"Model": BASE, "ForImageClassification": CLASSIFIER}

FAMILIES = {
    "vit": Family(name="vit", stem="ViT", prefix="vit", heads=IMAGE_MODELS, rewrites=REWRITES),
    "deit": Family(
        name="deit",
        stem="DeiT",
        prefix="deit",
        heads={**IMAGE_MODELS, "ForImageClassificationWithTeacher": TEACHER},
        rewrites=REWRITES,
    ),
    "beit": Family(name="beit", stem="Beit", prefix="beit", heads={**IMAGE_MODELS, "Model": BEIT_BASE}),
}


def vit(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a ViT, DeiT or BEiT: the model alone or with a head that classifies images."""
    family = FAMILIES[str(config["model_type"])]
    shared = bool(config.get("use_shared_relative_position_bias"))
    heads = "heads" if shared else "heads{i}"
    pooled = family.name == "beit" and config.get("use_mean_pooling", True)
    has_pooler = family.name != "beit" and str((config.get("architectures") or ["?"])[0]).endswith("Model")
    norm = "pooler.layernorm" if pooled else "layernorm"
    encoder = {name.replace("layernorm", norm): line for name, line in EMBEDDINGS.items()}
    encoder |= {name: "- heads" for name in SHARED_BIAS if shared}
    family = replace(
        family,
        encoder=encoder | (POOLER if has_pooler else {}),
        layer={name: line.replace("{heads}", heads) for name, line in LAYER.items()},
        layer_path="layers.{i}",
        taps=POOLER_TAPS if has_pooler else {},
        layer_taps={
            "qk{i}": ("attention.q_proj:out", "attention.k_proj:out"),
            "v{i}": ("attention.o_proj:in",),
            "ffn{i}": ("mlp.fc2:in",),
        },
        attention_heads=heads,
        groups={"pooler": activation_group(config.get("pooler_act", "tanh"))},
        folded={"residual": "orthogonal_one"},
    )
    spec = encoder_spec(family, config)
    taps = {axis: tuple(f"{site}:all" for site in sites) for axis, sites in spec.taps.items()}
    return replace(spec, taps=taps)
