"""Tiny models of every family whose layers can be planned, and the same surgery by hand on the modules of the model."""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tiny import random_tensors
from torch import Tensor

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import build, model_class, model_config, quiet, set_weights
from merge.layers.plans.plan import LayerPlan, planned_config, planned_tensors

SIZES = {
    "vocab_size": 18,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROBERTA = {**SIZES, "max_position_embeddings": 40, "type_vocab_size": 1, "pad_token_id": 1}
LLAMA = {**SIZES, "num_key_value_heads": 2}
GEMMA = {**LLAMA, "head_dim": 6, "sliding_window": 5, "query_pre_attn_scalar": 6}
DEBERTA = {**SIZES, "type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
PIXELS = {k: SIZES[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
IMAGE = {**PIXELS, "image_size": 8, "patch_size": 4}
QWEN = {**LLAMA, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# For each model_type: its architecture, its sizes, and where the list of its layers is in the module.
FAMILY: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert": ("BertForMaskedLM", SIZES, "bert.encoder.layer"),
    "roberta": ("RobertaForMaskedLM", ROBERTA, "roberta.encoder.layer"),
    "xlm-roberta": ("XLMRobertaModel", ROBERTA, "encoder.layer"),
    "camembert": ("CamembertForTokenClassification", ROBERTA, "roberta.encoder.layer"),
    "data2vec-text": ("Data2VecTextModel", ROBERTA, "encoder.layer"),
    "distilbert": (
        "DistilBertForMaskedLM",
        {**TOKENS, "vocab_size": 18, "dim": 24, "n_layers": 4, "n_heads": 4, "hidden_dim": 40}
        | {"max_position_embeddings": 32, "dropout": 0.0, "attention_dropout": 0.0},
        "distilbert.transformer.layer",
    ),
    "electra": ("ElectraModel", {**SIZES, "embedding_size": 12}, "encoder.layer"),
    "ernie": ("ErnieModel", SIZES, "encoder.layer"),
    "megatron-bert": ("MegatronBertModel", SIZES, "encoder.layer"),
    "roformer": ("RoFormerModel", {**SIZES, "embedding_size": 12}, "encoder.layer"),
    "albert": (
        "AlbertForMaskedLM",
        {**SIZES, "embedding_size": 12, "num_hidden_groups": 2, "inner_group_num": 1},
        "albert.encoder.albert_layer_groups",
    ),
    "deberta": ("DebertaModel", DEBERTA, "encoder.layer"),
    "deberta-v2": ("DebertaV2Model", {**DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"}, "encoder.layer"),
    "mpnet": ("MPNetModel", ROBERTA, "encoder.layer"),
    "modernbert": (
        "ModernBertForMaskedLM",
        {**SIZES, "local_attention": 6, "global_attn_every_n_layers": 3, "cls_token_id": 1, "sep_token_id": 2},
        "model.layers",
    ),
    "xlnet": (
        "XLNetLMHeadModel",
        {**TOKENS, "vocab_size": 18, "d_model": 24, "n_layer": 4, "n_head": 4, "d_inner": 40, "dropout": 0.0},
        "transformer.layer",
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {**TOKENS, "vocab_size": 18, "n_embd": 24, "n_layer": 4, "n_head": 4, "n_positions": 32},
        "transformer.h",
    ),
    "gpt_neox": ("GPTNeoXModel", SIZES, "layers"),
    "opt": (
        "OPTModel",
        {**SIZES, "ffn_dim": 40, "word_embed_proj_dim": 12, "dropout": 0.0, "do_layer_norm_before": True},
        "decoder.layers",
    ),
    "llama": ("LlamaForCausalLM", LLAMA, "model.layers"),
    "mistral": ("MistralModel", {**LLAMA, "sliding_window": None}, "layers"),
    "qwen2": ("Qwen2ForCausalLM", QWEN, "model.layers"),
    "qwen3": ("Qwen3Model", {**QWEN, "head_dim": 6}, "layers"),
    "gemma2": ("Gemma2ForCausalLM", GEMMA, "model.layers"),
    "gemma3_text": ("Gemma3ForCausalLM", {**GEMMA, "sliding_window_pattern": 2}, "model.layers"),
    "smollm3": (
        "SmolLM3ForCausalLM",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 5, "no_rope_layer_interval": 2},
        "model.layers",
    ),
    "vit": ("ViTModel", IMAGE, "layers"),
    "deit": ("DeiTModel", IMAGE, "layers"),
    "t5": (
        "T5EncoderModel",
        {**TOKENS, "vocab_size": 18, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 4, "num_heads": 4},
        "encoder.block",
    ),
    "bart": (
        "BartModel",
        {**TOKENS, "vocab_size": 18, "d_model": 24, "encoder_layers": 4, "decoder_layers": 3, "dropout": 0.0}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 32}
        | {"encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "decoder_start_token_id": 2},
        "encoder.layers",
    ),
    "clip": (
        "CLIPModel",
        {
            "projection_dim": 16,
            "text_config": {**SIZES, "num_hidden_layers": 3},
            "vision_config": {**IMAGE, "num_hidden_layers": 4},
        },
        "vision_model.encoder.layers",
    ),
}
# Families with several lists of layers: the one that tests are about.
STACK = {"t5": "encoder", "bart": "encoder", "clip": "vision"}


def family_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """Return the config.json of a tiny model of four layers."""
    architecture, sizes, _ = FAMILY[model_type]
    return {"model_type": model_type, "architectures": [architecture], **copy.deepcopy(sizes), **changes}


@cache
def _written(model_type: str, seed: int, changes: tuple[tuple[str, Any], ...]) -> Checkpoint:
    place, config = Path(tempfile.mkdtemp()), family_config(model_type, **dict(changes))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    folder = place / model_type
    model = model_class(config)(model_config(config))
    set_weights(model, random_tensors(config, seed, torch.float32))
    with quiet():
        model.save_pretrained(folder)
    return open_checkpoint(str(folder))


def checkpoint_of(model_type: str, seed: int = 0, **changes: Any) -> Checkpoint:
    """Return a checkpoint on disk, as transformers writes it; equal calls share it."""
    return _written(model_type, seed, tuple(changes.items()))


def planned_model(checkpoint: Checkpoint, plan: LayerPlan, config: Mapping[str, Any] | None = None) -> Any:
    """Return the model in float64 that a plan for one checkpoint makes, with another config in place of the planned one."""
    sources = planned_tensors(checkpoint.config, checkpoint.shapes, plan).sources
    tensors = {checkpoint.written_name(name): checkpoint.tensor(source) for name, ((_, source),) in sources.items()}
    return build(planned_config(checkpoint.config, plan) if config is None else config, tensors, _dtype(checkpoint))


def original_model(checkpoint: Checkpoint) -> Any:
    """Return the model in float64 as it stands on the disk."""
    tensors = {checkpoint.written_name(name): checkpoint.tensor(name) for name in checkpoint.tensors}
    return build(checkpoint.config, tensors, _dtype(checkpoint))


def sliced_model(checkpoint: Checkpoint, order: Sequence[int]) -> Any:
    """Return the model with its list of layers replaced by hand, knowing nothing of plans, tensor names or configs.

    What the modules read by place from the config while they run is given in the new order; counts are left alone.
    """
    model, kind = original_model(checkpoint), checkpoint.model_type
    path, _, last = FAMILY[kind][2].rpartition(".")
    holder = model.get_submodule(path)
    old = getattr(holder, last)
    bias = old[0].layer[0].SelfAttention.relative_attention_bias if kind == "t5" else None
    if kind == "albert":
        per_group = len(old) and model.config.num_hidden_layers // len(old)
        old = [old[i // per_group] for i in range(model.config.num_hidden_layers)]
    if getattr(model.config, "layer_types", None) and kind != "modernbert":  # whose layers know their own kind
        model.config.layer_types = [model.config.layer_types[i] for i in order]
    new = torch.nn.ModuleList([copy.deepcopy(old[i]) for i in order])
    setattr(holder, last, new)
    for place, layer in enumerate(new):
        if kind == "t5":
            attention = layer.layer[0].SelfAttention
            attention.has_relative_attention_bias = place == 0
            attention.relative_attention_bias = bias
    if kind == "albert":  # its encoder divides layers among groups: as many of one as of the other
        model.config.num_hidden_groups = model.config.num_hidden_layers = len(order)
    if kind in LIVE_COUNT:
        object.__setattr__(model.config, "num_hidden_layers", len(order))  # past the check that lists are as long
    return model


def _dtype(checkpoint: Checkpoint) -> torch.dtype:
    return torch.float32 if checkpoint.model_type == "xlnet" else torch.float64  # XLNet makes positions in float32


# Models that run the first so many layers of the list, as their config says while they run.
LIVE_COUNT = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3")


def outputs(model: Any) -> dict[str, Tensor]:
    """Return the outputs on random tokens and pixels, some of them padding; without a cache, which layers share."""
    generator = torch.Generator().manual_seed(5)
    config = model.config.to_dict()
    text = {**config, **config.get("text_config", {}), "max_position_embeddings": 24}
    batch: dict[str, Tensor] = {}
    if "vocab_size" in text:
        batch |= random_inputs(text)[0]
    if model.main_input_name == "pixel_values" or "vision_config" in config:
        batch["pixel_values"] = torch.randn(4, 3, 8, 8, generator=generator, dtype=model.dtype)
    if model.config.model_type in CACHED:
        batch["use_cache"] = False
    if model.config.model_type in LIVE_COUNT:  # where only padding is in a window, softmax is of nothing
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    with torch.inference_mode():
        found = model(**batch)
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


CACHED = (*LIVE_COUNT, "gpt2", "gpt_neox", "opt", "bart")


def difference(a: Any, b: Any) -> float:
    """Return the largest difference of any output of two models, of which there is at least one."""
    left, right = outputs(a), outputs(b)
    assert left
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)
