"""Tiny models of the families whose tensors are fused, transposed, grouped, rotary or of images, one config a case.

A family's first case stands for it where one head is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from families import DECODER, LABELS, NARROW, SIZES, UNTIED
from torch import Tensor

from merge.checkpoints.inputs import random_inputs

GPT2: dict[str, Any] = {
    "vocab_size": 18,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 40,
    "n_positions": 32,
    "pad_token_id": 1,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
# Four key/value heads of three query heads each.
LLAMA = SIZES | {
    "hidden_size": 48,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "use_cache": False,
}
BIASED = {"attention_bias": True, "mlp_bias": True}
MODERNBERT = SIZES | {"local_attention": 6, "cls_token_id": 0, "sep_token_id": 2}
ALL_BIASES = {**BIASED, "norm_bias": True, "classifier_bias": True}
DEBERTA = SIZES | {"relative_attention": True, "max_relative_positions": 8, "pos_att_type": ["c2p", "p2c"]}
DEBERTA_V3 = DEBERTA | {
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 6,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "max_relative_positions": -1,
}
XLNET: dict[str, Any] = {
    "vocab_size": 18,
    "d_model": 24,
    "n_layer": 2,
    "n_head": 4,
    "d_inner": 40,
    "dropout": 0.0,
    "pad_token_id": 1,
    "summary_last_dropout": 0.0,
    "type_vocab_size": 2,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
IMAGE: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "image_size": 8,
    "patch_size": 4,
}
BEIT = IMAGE | {"use_absolute_position_embeddings": True, "drop_path_rate": 0.0, "vocab_size": 18}
CLIP_TEXT = SIZES | {"num_attention_heads": 6}
CLIP: dict[str, Any] = {"projection_dim": 10, "text_config": CLIP_TEXT, "vision_config": IMAGE}


def _case(model_type: str, architecture: str, sizes: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    labels = LABELS if "Classification" in architecture else {}
    return {"model_type": model_type, "architectures": [architecture], **sizes, **labels, **changes}


def _cases(model_type: str, stem: str, ends: str, sizes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {stem + end: _case(model_type, stem + end, sizes) for end in ends.split()}


CLASSIFIERS = "ForSequenceClassification ForTokenClassification"
COMMON = f"{CLASSIFIERS} Model ForQuestionAnswering"

CASES: dict[str, dict[str, Any]] = {
    **_cases("gpt2", "GPT2", f"{COMMON} LMHeadModel", GPT2),
    "gpt2 untied": _case("gpt2", "GPT2LMHeadModel", GPT2, **UNTIED),
    **_cases("llama", "Llama", f"{COMMON} ForCausalLM", LLAMA | BIASED),
    "llama tied": _case("llama", "LlamaForCausalLM", LLAMA, tie_word_embeddings=True),
    **_cases("mistral", "Mistral", "ForCausalLM ForSequenceClassification", LLAMA | {"sliding_window": None}),
    **_cases("qwen2", "Qwen2", "ForCausalLM Model", LLAMA),
    **_cases("qwen3", "Qwen3", "ForCausalLM ForTokenClassification", LLAMA),
    **_cases("modernbert", "ModernBert", f"{COMMON} ForMaskedLM ForMultipleChoice", MODERNBERT),
    "modernbert with biases": _case("modernbert", "ModernBertForMaskedLM", MODERNBERT | ALL_BIASES),
    "modernbert untied": _case("modernbert", "ModernBertForMaskedLM", MODERNBERT, **UNTIED),
    **_cases("deberta", "Deberta", f"{COMMON} ForMaskedLM", DEBERTA),
    "deberta talking": _case("deberta", "DebertaForSequenceClassification", DEBERTA, talking_head=True),
    **_cases("deberta-v2", "DebertaV2", f"{COMMON} ForMaskedLM ForMultipleChoice", DEBERTA_V3),
    "deberta-v2 own positions": _case(
        "deberta-v2", "DebertaV2ForMaskedLM", DEBERTA, share_att_key=False, conv_kernel_size=3, embedding_size=10
    ),
    "deberta-v2 content only": _case("deberta-v2", "DebertaV2Model", SIZES, relative_attention=False),
    **_cases("xlnet", "XLNet", f"{CLASSIFIERS} Model LMHeadModel ForMultipleChoice ForQuestionAnsweringSimple", XLNET),
    **_cases("roformer", "RoFormer", f"{COMMON} ForMaskedLM ForMultipleChoice", NARROW),
    "RoFormerForCausalLM": _case("roformer", "RoFormerForCausalLM", NARROW, **DECODER),
    "roformer rotary values": _case("roformer", "RoFormerModel", SIZES, embedding_size=24, rotary_value=True),
    **_cases("nomic_bert", "NomicBert", f"{CLASSIFIERS} Model ForMaskedLM", SIZES),
    **_cases("vit", "ViT", "ForImageClassification Model", IMAGE),
    **_cases("deit", "DeiT", "ForImageClassification Model ForImageClassificationWithTeacher", IMAGE),
    **_cases("beit", "Beit", "ForImageClassification Model", BEIT),
    "beit relative": _case("beit", "BeitForImageClassification", BEIT, use_relative_position_bias=True),
    "beit shared relative": _case("beit", "BeitModel", BEIT, use_shared_relative_position_bias=True),
    "beit first token": _case("beit", "BeitModel", BEIT, use_mean_pooling=False),
    **_cases("clip", "CLIP", "Model ForImageClassification", CLIP),
    **_cases("clip_text_model", "CLIPText", "Model ModelWithProjection", CLIP_TEXT | {"projection_dim": 10}),
    **_cases("clip_vision_model", "CLIPVision", "Model ModelWithProjection", IMAGE | {"projection_dim": 10}),
}

# What cannot show in the outputs when its order is wrong: model type -> pattern of `tensor line`, the line as it is with
# one axis fixed -> reason.
SOFTMAX = "softmax cancels what a key bias adds to all scores of a query"
INERT: dict[str, dict[str, str]] = {
    # Of the tensor's three parts only the keys' is idle.
    "gpt2": {r"attn\.c_attn\.bias \[\(heads\d qk\d\) \| (-|\(heads\d -\)) \| \(heads\d v\d\)\]": SOFTMAX},
    "vit": {r"attention\.k_proj\.bias": SOFTMAX},
    "deit": {r"attention\.k_proj\.bias": SOFTMAX},
    **{
        model_type: {r"self_attn\.k_proj\.bias": SOFTMAX}
        for model_type in ("clip", "clip_text_model", "clip_vision_model")
    },
    "xlnet": {"mask_emb": "stands for tokens that are predicted in place, which these inputs have none of"},
}


def inputs(config: Mapping[str, Any], seed: int = 0) -> tuple[dict[str, Tensor], ...]:
    """Return random batches with everything the family reads: padding, segments, images."""
    text, vision = config.get("text_config") or config, config.get("vision_config") or config
    images = [{} for _ in range(4)] if "image_size" not in vision else _images(vision, seed)
    reads_text = "text_config" in config or "image_size" not in config
    if not reads_text or config["architectures"] == ["CLIPForImageClassification"]:
        return tuple(images)
    batches = random_inputs({**text, "architectures": config["architectures"]}, seed)
    return tuple({**batch, **image} for batch, image in zip(batches, images, strict=True))


def _images(config: Mapping[str, Any], seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    size = (4, 3, config["image_size"], config["image_size"])
    return [{"pixel_values": torch.randn(size, generator=generator, dtype=torch.float64)} for _ in range(4)]
