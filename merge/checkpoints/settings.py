"""Which entries of a config.json decide an output of the model at inference, and which of them differ between two models.

Families name the same thing differently (hidden_dropout_prob, resid_pdrop, mlp_dropout), so that what never decides an
output is told by patterns as well as by names. `tests/contracts/test_settings.py` holds them against a run of every
family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from merge.checkpoints.structure import Structure

# Names, versions, and the form in which outputs are returned.
RECORDS = {
    "_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "dtype", "torch_dtype", "id2label",
    "label2id", "problem_type", "finetuning_task", "task_specific_params", "tokenizer_class", "return_dict",
    "output_attentions", "output_hidden_states", "output_past", "output_router_logits", "use_bfloat16", "torchscript",
}  # fmt: skip
# How the same numbers are computed: memory, kernels, chunks.
COMPUTATION = {
    "use_cache", "gradient_checkpointing", "cpu_grad_checkpoint", "chunk_size_feed_forward", "chunk_size_lm_head",
    "_attn_implementation", "attn_implementation", "_experts_implementation", "reorder_and_upcast_attn", "slow_but_exact",
    "deterministic_flash_attn", "reference_compile", "repad_logits_with_grad", "pretraining_tp", "use_mamba_kernels",
    "use_mambapy", "use_mem_eff_path", "disable_custom_kernels", "use_tpu_fourier_optimizations", "tpu_short_seq_length",
    "onnx_export", "fp16_esm",
}  # fmt: skip
# First values of parameters, which the weights of a trained model replace.
INITIAL = re.compile(
    r"(\w+_)?initializer_(range|factor|std|cutoff_factor|bias_prior_prob)|(\w+_)?init_(std|xavier_std)|"
    r"(layer|logit)_scale_init_value|layerscale_value|(\w+_)?layer_scale_(init_value|initial_scale)|"
    r"temperature_init_value|cae_init_values|axial_norm_std|lambda_std_dev|layer_norm_init|rescale_prenorm_residual|"
    r"time_step_(init_scheme|min|max|floor|scale)|sinusoidal_(pos_embds|embeddings)|special_visual_initialize|init_device|"
    r"init_codebook|init_cell_selection_weights_to_zero|w_init_variance_scale"
)
# What is random in training alone: dropout by its many names, masked or noisy inputs; and how a loss is made.
TRAINING = re.compile(
    r"\w*dropout(_p|_prob|_probs_prob|_rate|_value|_positions)?|\w*_pdrop|(\w+_)?drop_?(path|_rate|connect|mlp|conv_encoder)"
    r"(_rate)?|\w*drop_path\w*|\w*layer_?drop|\w*droppath|mask_time_(prob|length|min_masks)|"
    r"mask_feature_(prob|length|min_masks)|apply_spec_augment|\w*_jitter_(noise|eps)|pos_embed_(jitter|shift|rescale)|"
    r"(label|box)_noise_\w+|label_smoothing|\w*_loss_(coef|coefficient|weight|importance|cutoff|delta|ignore_index|reduction)|"
    r"loss_ignore_index|\w*z_loss_coef(ficient)?|aux_loss_coef|ctc_zero_infinity|eos_coefficient|huber_loss_delta|"
    r"positive_label_weight|use_normalized_answer_loss|disable_(ngram|per_token)_loss|norm_pix_loss|normalize_pixel_loss|"
    r"(matcher_)?(bbox|class|giou|mask)_cost|sparse_prediction|sparse_pred_ignore_index|lsh_backward|use_mems_train|reuse_len|"
    r"visual_(attr|feat|obj)_loss|visual_loss_normalizer|(focal|matcher)_(loss_)?(alpha|gamma)|use_focal_loss|weight_loss_\w+|"
    r"(use_)?guided_attention_loss\w*|mtp_loss_scaling_factor|masked_loss|loss_reduction|"
    r"batch_norm_momentum|freeze_\w+|train_num_points|encoder_stride"
)
# Dropout by name alone: these scale or drop numbers at inference too.
AT_INFERENCE = {
    "token_dropout", "moe_token_dropout", "lm_dropout", "per_loop_lm_dropout", "speech_decoder_prenet_dropout",
}  # fmt: skip


def decides_output(key: str) -> bool:
    """Return whether a config entry can change what a model with given weights computes at inference."""
    if key in AT_INFERENCE:
        return True
    return not (key in RECORDS or key in COMPUTATION or INITIAL.fullmatch(key) or TRAINING.fullmatch(key))


def setting_differences(
    a: Structure, b: Structure, may_differ: AbstractSet[str] = frozenset()
) -> list[tuple[str, Any, Any]]:
    """Return (entry, value in a, value in b) for every setting that decides an output and differs, defaults filled in.

    Entries that transformers does not know for the family change nothing. In configs inside the config each entry is
    compared by itself: "text_config.hidden_act".
    """
    left, right = a.settings, b.settings
    keys = [key for key in a.known if key not in may_differ]
    if a.ties == b.ties and a.shapes.keys() == b.shapes.keys():
        keys = [key for key in keys if key != "tie_word_embeddings"]
    return [difference for key in keys for difference in _differences(key, left.get(key), right.get(key))]


def _differences(key: str, left: Any, right: Any) -> list[tuple[str, Any, Any]]:
    if left == right or not decides_output(key.rpartition(".")[2]):
        return []
    if _is_config(left) and _is_config(right):
        inner = dict.fromkeys([*left, *right])
        return [pair for name in inner for pair in _differences(f"{key}.{name}", left.get(name), right.get(name))]
    return [(key, left, right)]


def _is_config(value: Any) -> bool:
    """Return whether a value is the config of a part, such as text_config, and not a mapping of one setting."""
    return isinstance(value, Mapping) and "model_type" in value
