"""Tiny sequence classifiers of transformers' families: what each config needs beyond the common sizes."""

from __future__ import annotations

from typing import Any

from families import DISTILBERT, GROUPS, LABELS, NARROW, SIZES
from families_more import DEBERTA, DEBERTA_V3, GPT2, LLAMA, MODERNBERT, XLNET

PLAIN = SIZES | {"dropout": 0.0, "use_cache": False}
BART: dict[str, Any] = {
    "vocab_size": 18, "d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "max_position_embeddings": 32,
    "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 3, "decoder_start_token_id": 3, "forced_eos_token_id": 3, "use_cache": False,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": 18, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "dropout_rate": 0.0, "classifier_dropout": 0.0, "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0,
    "use_cache": False,
}  # fmt: skip
XLM: dict[str, Any] = {
    "vocab_size": 18, "emb_dim": 24, "n_layers": 2, "n_heads": 4, "dropout": 0.0, "attention_dropout": 0.0,
    "max_position_embeddings": 32, "pad_token_id": 0, "pad_index": 0, "summary_first_dropout": 0.0, "n_langs": 1,
}  # fmt: skip
# Every command that looks inside a model answers on each: features, similarity, lesion, linearity.
LOOKED_INSIDE = (
    "albert", "bert", "deberta-v2", "distilbert", "electra", "gpt2", "llama", "modernbert", "mpnet", "roberta", "xlnet",
)  # fmt: skip
WIDE = LLAMA | {"attention_dropout": 0.0}

# Model type -> what its classes' names begin with, and its sizes.
CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("Albert", GROUPS),
    "bart": ("Bart", BART),
    "bert": ("Bert", SIZES),
    "big_bird": ("BigBird", SIZES | {"block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 64}),
    "bloom": ("Bloom", {"vocab_size": 18, "hidden_size": 24, "n_layer": 2, "n_head": 4, "pad_token_id": 1}),
    "biogpt": ("BioGpt", PLAIN),
    "camembert": ("Camembert", SIZES),
    "convbert": ("ConvBert", NARROW | {"conv_kernel_size": 5, "head_ratio": 2}),
    "ctrl": (
        "CTRL",
        {
            "vocab_size": 18,
            "n_positions": 32,
            "n_embd": 24,
            "dff": 40,
            "n_layer": 2,
            "n_head": 4,
            "pad_token_id": 1,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
        },
    ),
    "deberta": ("Deberta", DEBERTA),
    "deberta-v2": ("DebertaV2", DEBERTA_V3),
    "distilbert": ("DistilBert", DISTILBERT),
    "electra": ("Electra", NARROW),
    "ernie": ("Ernie", SIZES),
    "esm": ("Esm", SIZES | {"token_dropout": False, "position_embedding_type": "absolute", "mask_token_id": 4}),
    "falcon": ("Falcon", PLAIN | {"num_kv_heads": 4, "bias": True}),
    "flaubert": ("Flaubert", XLM),
    "fnet": ("FNet", SIZES),
    "funnel": (
        "Funnel",
        {
            "vocab_size": 18,
            "block_sizes": [1, 1],
            "d_model": 24,
            "n_head": 4,
            "d_head": 6,
            "d_inner": 40,
            "num_decoder_layers": 1,
            "pad_token_id": 0,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    "gemma": ("Gemma", WIDE),
    "gpt2": ("GPT2", GPT2),
    "gpt_neo": (
        "GPTNeo",
        {
            "vocab_size": 18,
            "hidden_size": 24,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "num_heads": 4,
            "max_position_embeddings": 32,
            "window_size": 4,
            "pad_token_id": 1,
        },
    ),
    "gpt_neox": ("GPTNeoX", PLAIN),
    "gptj": ("GPTJ", GPT2 | {"rotary_dim": 4}),
    "ibert": ("IBert", SIZES),
    "lilt": ("Lilt", SIZES | {"hidden_size": 24, "channel_shrink_ratio": 2, "max_2d_position_embeddings": 64}),
    "llama": ("Llama", LLAMA),
    "longformer": ("Longformer", SIZES | {"attention_window": 4}),
    "luke": ("Luke", SIZES | {"entity_vocab_size": 7, "entity_emb_size": 10}),
    "markuplm": ("MarkupLM", SIZES | {"max_depth": 4, "xpath_unit_hidden_size": 4}),
    "mbart": ("MBart", BART),
    "megatron-bert": ("MegatronBert", SIZES),
    "mistral": ("Mistral", LLAMA | {"sliding_window": None}),
    "mixtral": ("Mixtral", LLAMA | {"num_local_experts": 3}),
    "mobilebert": ("MobileBert", SIZES | {"embedding_size": 10, "intra_bottleneck_size": 24, "true_hidden_size": 24}),
    "modernbert": ("ModernBert", MODERNBERT),
    "mpnet": ("MPNet", SIZES),
    "mra": ("Mra", SIZES | {"block_per_row": 2, "max_position_embeddings": 64}),
    "nomic_bert": ("NomicBert", SIZES),
    "nystromformer": ("Nystromformer", SIZES | {"num_landmarks": 8, "segment_means_seq_len": 8, "conv_kernel_size": 3}),
    "openai-gpt": ("OpenAIGPT", GPT2 | {"afn": "gelu"}),
    "opt": (
        "OPT",
        PLAIN | {"ffn_dim": 40, "word_embed_proj_dim": 24, "do_layer_norm_before": True, "attention_dropout": 0.0},
    ),
    "phi": (
        "Phi",
        PLAIN | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0, "partial_rotary_factor": 0.67},
    ),
    "qwen2": ("Qwen2", LLAMA),
    "rembert": ("RemBert", SIZES | {"input_embedding_size": 10, "output_embedding_size": 10}),
    "roberta": ("Roberta", SIZES),
    "roberta-prelayernorm": ("RobertaPreLayerNorm", SIZES),
    "roc_bert": ("RoCBert", SIZES | {"enable_pronunciation": False, "enable_shape": False}),
    "roformer": ("RoFormer", NARROW),
    "squeezebert": ("SqueezeBert", SIZES | {"embedding_size": 24, "q_groups": 2, "k_groups": 2, "v_groups": 2}),
    "t5": ("T5", T5),
    "xlm": ("XLM", XLM),
    "xlm-roberta": ("XLMRoberta", SIZES),
    "xlnet": ("XLNet", XLNET | {"summary_last_dropout": 0.0}),
    "xmod": ("Xmod", SIZES | {"languages": ["en_XX"], "default_language": "en_XX"}),
    "yoso": ("Yoso", SIZES | {"use_expectation": True, "max_position_embeddings": 64}),
}


def classifier_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """Return the config.json of a tiny three-way classifier of a family."""
    stem, sizes = CLASSIFIERS[model_type]
    named = {"model_type": model_type, "architectures": [f"{stem}ForSequenceClassification"]}
    return {**named, **sizes, **LABELS, **changes}
