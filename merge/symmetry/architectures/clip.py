"""CLIP: two pre-LN encoders, of texts and of images, each with its own residual stream; both project onto one axis.

Both projections write the axis `projection`, and the similarity reads it from both sides, so it moves alike on both.
The similarity is the cosine: with both encoders the projection axis takes every rotation. The text stream can be
rotated once the gains of its norms are folded; the image stream cannot, because a norm before its first layer has a
gain on the stream itself. The order of channels, pixels and patch positions is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge.errors import SpecError, nearest
from merge.symmetry.architectures.encoder import activation_group
from merge.symmetry.rewrites import Rewrites
from merge.symmetry.spec import PermutationSpec

LAYER = {
    "self_attn.q_proj.weight": "({side}_heads{i} {side}_qk{i}) {side}_residual'",
    "self_attn.q_proj.bias": "({side}_heads{i} {side}_qk{i})",
    "self_attn.k_proj.weight": "({side}_heads{i} {side}_qk{i}') {side}_residual'",
    "self_attn.k_proj.bias": "({side}_heads{i} {side}_qk{i}')",
    "self_attn.v_proj.weight": "({side}_heads{i} {side}_v{i}) {side}_residual'",
    "self_attn.v_proj.bias": "({side}_heads{i} {side}_v{i})",
    "self_attn.out_proj.weight": "{side}_residual ({side}_heads{i} {side}_v{i})'",
    "self_attn.out_proj.bias": "{side}_residual",
    "layer_norm1.weight": "{side}_residual=",
    "layer_norm1.bias": "{side}_residual",
    "mlp.fc1.weight": "{side}_ffn{i} {side}_residual'",
    "mlp.fc1.bias": "{side}_ffn{i}",
    "mlp.fc2.weight": "{side}_residual {side}_ffn{i}'",
    "mlp.fc2.bias": "{side}_residual",
    "layer_norm2.weight": "{side}_residual=",
    "layer_norm2.bias": "{side}_residual",
}
LAYER_TAPS = {
    "{side}_residual": ("layer_norm1:out", "layer_norm2:out"),
    "{side}_qk{i}": ("self_attn.q_proj:out", "self_attn.k_proj:out"),
    "{side}_v{i}": ("self_attn.out_proj:in",),
    "{side}_ffn{i}": ("mlp.fc2:in",),
}
ENCODER = {
    "text": {
        "embeddings.token_embedding.weight": "- text_residual",
        "embeddings.position_embedding.weight": "- text_residual",
        "final_layer_norm.weight": "text_residual=",
        "final_layer_norm.bias": "text_residual",
    },
    "vision": {
        "embeddings.class_embedding": "vision_residual",
        "embeddings.patch_embedding.weight": "vision_residual - - -",
        "embeddings.position_embedding.weight": "- vision_residual",
        "pre_layrnorm.weight": "vision_residual=",
        "pre_layrnorm.bias": "vision_residual",
        "post_layernorm.weight": "vision_residual=",
        "post_layernorm.bias": "vision_residual",
    },
}
TEXT_PROJECTION = {"text_projection.weight": "projection text_residual'"}
IMAGE_PROJECTION = {"visual_projection.weight": "projection vision_residual'"}
# The image encoder's last hidden state is the stream itself, so the mean of what is written there shows.
REWRITES = Rewrites(keys=("self_attn.k_proj",), values={"self_attn.v_proj": "self_attn.out_proj"})
CLASSIFIER = {"classifier.weight": "labels vision_residual'", "classifier.bias": "labels"}

# Class -> prefix of each of its encoders, tensors outside the encoders, their prefix, outputs.
MODELS: dict[str, tuple[dict[str, str], dict[str, str], str, dict[str, str]]] = {
    "CLIPModel": (
        {"text": "clip.text_model.", "vision": "clip.vision_model."},
        {"logit_scale": "", **TEXT_PROJECTION, **IMAGE_PROJECTION},
        "clip.",
        {"logits_per_image": "- -", "text_embeds": "- projection", "image_embeds": "- projection"},
    ),
    "CLIPTextModel": (
        {"text": "clip."},
        {},
        "",
        {"last_hidden_state": "- - text_residual", "pooler_output": "- text_residual"},
    ),
    "CLIPVisionModel": (
        {"vision": "clip."},
        {},
        "",
        {"last_hidden_state": "- - vision_residual", "pooler_output": "- vision_residual"},
    ),
    "CLIPTextModelWithProjection": (
        {"text": "text_model."},
        TEXT_PROJECTION,
        "",
        {"text_embeds": "- projection"},
    ),
    "CLIPVisionModelWithProjection": (
        {"vision": "vision_model."},
        IMAGE_PROJECTION,
        "",
        {"image_embeds": "- projection"},
    ),
    "CLIPForImageClassification": ({"vision": "clip.vision_model."}, CLASSIFIER, "clip.", {"logits": "- labels"}),
}


def clip(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a CLIP: both encoders, or one, with or without its projection.

    Raises:
        SpecError: the class is not in MODELS; names the nearest.
    """
    architecture = str((config.get("architectures") or ["?"])[0])
    if architecture not in MODELS:
        raise SpecError(f"the clip table has no task head {architecture!r}.{nearest(architecture, MODELS)}")
    encoders, outside, prefix, outputs = MODELS[architecture]
    lines = {f"{prefix}{name}": line for name, line in outside.items()}
    sizes: dict[str, int] = {}
    taps: dict[str, tuple[str, ...]] = {}
    for side, path in encoders.items():
        side_config = config.get(f"{side}_config") or config
        lines |= {f"{path}{name}": line for name, line in ENCODER[side].items()}
        for i in range(int(side_config["num_hidden_layers"])):
            sizes[f"{side}_heads{i}"] = int(side_config["num_attention_heads"])
            layer = f"{path}encoder.layers.{i}."
            lines |= {f"{layer}{name}": line.format(side=side, i=i) for name, line in LAYER.items()}
            for axis, sites in LAYER_TAPS.items():
                name = axis.format(side=side, i=i)
                mark = ":all" if side == "vision" else ""
                taps[name] = (*taps.get(name, ()), *(f"{layer}{site}{mark}" for site in sites))
    for name in outside:
        if name.endswith("projection.weight"):
            taps["projection"] = (*taps.get("projection", ()), f"{prefix}{name.removesuffix('.weight')}:out")
    groups = {"projection": "orthogonal" if len(encoders) == 2 else "linear"}
    for side in encoders:
        side_config = config.get(f"{side}_config") or config
        groups |= {f"{side}_residual": "sign", f"{side}_qk": "linear", f"{side}_v": "linear"}
        groups[f"{side}_ffn"] = activation_group(side_config.get("hidden_act", "quick_gelu"))
    folded = {"text_residual": "orthogonal_one"} if "text" in encoders else {}
    named = frozenset({"labels"})
    return PermutationSpec("clip", lines, sizes, taps, outputs, named, groups=groups, folded=folded, rewrites=REWRITES)
