"""DeBERTa v2 and v3: post-LN, relative positions, and a convolution beside the first layer in some configs.

The table of relative positions is on the residual stream; projections of its own read it, or with `share_att_key` the
layer's queries and keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from merge.errors import SpecError
from merge.symmetry.architectures.deberta import ENCODER, HEADS, OUTPUT, POOLER, POOLER_TAP, groups_of, word_axis
from merge.symmetry.architectures.encoder import Family, activation_group, encoder_spec
from merge.symmetry.architectures.head import Head
from merge.symmetry.spec import PermutationSpec

LAYER = {
    "attention.self.query_proj.weight": "(heads{i} qk{i}) residual'",
    "attention.self.query_proj.bias": "(heads{i} qk{i})",
    "attention.self.key_proj.weight": "(heads{i} qk{i}') residual'",
    "attention.self.key_proj.bias": "(heads{i} qk{i}')",
    "attention.self.value_proj.weight": "(heads{i} v{i}) residual'",
    "attention.self.value_proj.bias": "(heads{i} v{i})",
    "attention.self.pos_key_proj.weight": "(heads{i} qk{i}') residual'",
    "attention.self.pos_key_proj.bias": "(heads{i} qk{i}')",
    "attention.self.pos_query_proj.weight": "(heads{i} qk{i}) residual'",
    "attention.self.pos_query_proj.bias": "(heads{i} qk{i})",
    **OUTPUT,
}

RELATIVE_NORM = {"encoder.LayerNorm.weight": "residual=", "encoder.LayerNorm.bias": "residual"}
CONVOLUTION = {
    "encoder.conv.conv.weight": "residual residual' -",
    "encoder.conv.conv.bias": "residual",
    "encoder.conv.LayerNorm.weight": "residual=",
    "encoder.conv.LayerNorm.bias": "residual",
}

DEBERTA_V2 = Family(
    name="deberta-v2",
    stem="DebertaV2",
    prefix="deberta",
    heads={
        **HEADS,
        "ForMultipleChoice": Head(
            POOLER | {"classifier.weight": "- pooler'", "classifier.bias": "-"}, {"logits": "- -"}, POOLER_TAP
        ),
    },
    encoder=ENCODER,
    layer=LAYER,
    taps={},
    layer_taps={
        "qk{i}": ("attention.self.query_proj:out", "attention.self.key_proj:out"),
        "v{i}": ("attention.output.dense:in",),
        "ffn{i}": ("output.dense:in",),
    },
)


def deberta_v2(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a DeBERTa v2 or v3 with the task head that the config names.

    Raises:
        SpecError: its convolution is grouped, which fixes the order of the residual stream: neighbours form the groups.
    """
    groups = int(config.get("conv_groups", 1))
    if groups > 1:
        raise SpecError(
            f"deberta-v2 with conv_groups {groups} has no permutation table: a grouped convolution takes neighbours of the "
            "residual stream together, so their order is fixed. Merge without alignment: --align none."
        )
    normed = config.get("relative_attention") and "layer_norm" in str(config.get("norm_rel_ebd", "none"))
    parts = (RELATIVE_NORM if normed else {}) | (CONVOLUTION if config.get("conv_kernel_size") else {})
    axis_groups = groups_of(config)
    if config.get("conv_kernel_size") and activation_group(config.get("conv_act", "tanh")) not in ("signed", "linear"):
        axis_groups["residual"] = "permutation"  # the convolution's activation is not odd, so it forbids the sign
    spec = encoder_spec(replace(DEBERTA_V2, encoder=ENCODER | parts, groups=axis_groups), config, word_axis(config))
    # The norm of the relative embeddings sees no tokens, so no padding mask applies there.
    unmasked = "deberta.encoder.LayerNorm:out"
    return replace(spec, taps={a: tuple(s + ":all" * (s == unmasked) for s in sites) for a, sites in spec.taps.items()})
