"""Settings that decide an output of a model are compared; those that cannot are not, whatever a family calls them.

Every entry of every family with a table is changed in turn, or with the others that decide nothing, and the model is run
with the same weights before and after: its own code says what an entry decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from architecture_case import CASES
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from merge.checkpoints.settings import AT_INFERENCE, decides_output, setting_differences
from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import model_class, model_config, quiet
from merge.errors import CheckpointError

# All of transformers' own; of the multi-layer perceptron, tests/merge/checkpoints/test_mlp.py.
FAMILIES = {c["model_type"]: (c, table) for c, table in reversed(CASES.values()) if c["model_type"] != "mlp"}
# Entries that are not changed: names, and what another check reports (labels, kinds of file).
APART = {
    "architectures", "model_type", "id2label", "label2id", "transformers_version", "problem_type", "dtype", "return_dict",
    "output_hidden_states", "output_attentions", "is_encoder_decoder", "tokenizer_class", "_name_or_path",
}  # fmt: skip
# Entries that change no output of these models by another value near their own, and could by one further off, or of other
# inputs: limits that short texts do not reach, tokens that these texts lack, memories, parts that these classes lack.
ELSEWHERE = {
    "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id", "bi_data", "mem_len", "clamp_len",
    "same_length", "use_mems_eval", "max_position_embeddings", "max_relative_positions", "local_attention",
    "max_window_layers", "use_sliding_window", "sliding_window", "start_n_top", "end_n_top", "summary_use_proj",
    "summary_proj_to_labels", "auxiliary_channels", "auxiliary_concat_input", "auxiliary_num_convs", "use_auxiliary_head",
    "reshape_hidden_states", "projection_dim", "pooler_output_size", "pooler_hidden_size", "decoder_bias", "legacy",
    "image_size", "vocab_size", "num_hidden_layers", "tie_word_embeddings", "classifier_dropout", "rotary_value",
    "is_decoder", "add_cross_attention", "type_vocab_size", "pooler_act", "pooler_hidden_act", "classifier_activation",
    "summary_activation",
}  # fmt: skip
FAULTS = (CheckpointError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, StrictDataclassError)


def changed(value: Any) -> list[Any]:
    """Return other values of a setting that a config would take."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        return [0.5 * value + 0.1]
    if isinstance(value, str) and "elu" in value:
        return ["tanh"]
    return [0.3, 2] if value is None else []


def other(config: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return the config with one entry changed, by its path: "text_config.attention_dropout"."""
    outer, dot, inner = key.partition(".")
    return {**config, outer: other(config.get(outer) or {}, inner, value) if dot else value}


@cache
def run(family: str) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return random weights of a family's model and its outputs with them."""
    config, _ = FAMILIES[family]
    model = build(config)
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(weights)
    return weights, outputs(model, family)


def build(config: Mapping[str, Any]) -> Any:
    with quiet(), torch.device("cpu"):
        return model_class(config)(model_config(config)).eval()


def outputs(model: Any, family: str) -> list[Tensor]:
    config, table = FAMILIES[family]
    batch = {k: v.float() if v.is_floating_point() else v for k, v in table.inputs(config)[0].items()}
    with torch.inference_mode():
        returned = model(**batch, return_dict=True)
    return [value for _, value in sorted(returned.items()) if isinstance(value, Tensor)]


def same_outputs(config: Mapping[str, Any], family: str) -> bool:
    """Return whether a model of this config with the family's weights computes what it did.

    Raises:
        RuntimeError, ValueError, TypeError: it cannot be built, or has other tensors: no merge could be made of it.
    """
    weights, expected = run(family)
    model = build(config)
    model.load_state_dict(weights)
    got = outputs(model, family)
    return len(got) == len(expected) and all(
        a.shape == b.shape and torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(got, expected, strict=True)
    )


def entries(family: str) -> list[tuple[str, Any]]:
    """Return (path, value) of every entry of a family's config, those of its parts included."""
    structure = structure_of(FAMILIES[family][0])
    found = []
    for key in structure.known:
        value = structure.settings.get(key)
        inner = value if isinstance(value, dict) and "model_type" in value else {"": value}
        found += [(f"{key}.{name}".rstrip("."), part) for name, part in inner.items()]
    return [(key, value) for key, value in found if key.rpartition(".")[2] not in APART]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_decides_no_output_changes_none(family: str) -> None:
    """All of them at once, as a battery: the model computes the same numbers, and the pair is no fault."""
    config, _ = FAMILIES[family]
    altered, count = config, 0
    for key, value in entries(family):
        if not decides_output(key.rpartition(".")[2]) and value is not None and (new := changed(value)):
            altered, count = other(altered, key, new[0]), count + 1
    assert count >= 3
    assert same_outputs(altered, family)
    assert setting_differences(structure_of(config), structure_of(altered)) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_entry_is_compared_if_and_only_if_it_can_decide_an_output(family: str) -> None:
    """Each alone: an entry that changes an output counts, and one that changes none is known to decide none."""
    config, _ = FAMILIES[family]
    deciding = 0
    for key, value in entries(family):
        name = key.rpartition(".")[2]
        for new in changed(value):
            try:
                same = same_outputs(other(config, key, new), family)
            except FAULTS:  # other sizes, or no such value: a merge stops at shapes, or at the config
                continue
            deciding += not same
            assert same or decides_output(name), f"{key} changes an output, and is not compared"
            assert not same or not decides_output(name) or name in ELSEWHERE, f"{key} changes no output, and blocks"
            break
    assert deciding >= 1


@pytest.mark.parametrize("key", sorted(AT_INFERENCE))
def test_dropout_that_acts_at_inference_is_compared(key: str) -> None:
    assert decides_output(key)


@pytest.mark.parametrize(
    "key",
    [
        "inv_coeff_init_option", "initial_prior_first_n_blocks", "drop_vision_last_layer", "scale_attn_weights", "noise_scale",
        "depth_coefficient", "hash_seed", "logit_scale", "init_layernorm_from_vision_encoder", "aggregation_temperature",
        "layer_norm_eps", "hidden_act", "classifier_pooling", "rope_parameters", "position_embedding_type",
    ],
)  # fmt: skip
def test_names_that_only_look_like_training_decide(key: str) -> None:
    """The negative control of the patterns."""
    assert decides_output(key)


def test_a_config_inside_a_config_is_compared_entry_by_entry() -> None:
    """The text half of a CLIP, trained with another dropout, still merges; with another activation it does not."""
    config, _ = FAMILIES["clip"]
    structure = structure_of(config)
    assert setting_differences(structure, structure_of(other(config, "text_config.attention_dropout", 0.4))) == []
    differing = setting_differences(structure, structure_of(other(config, "vision_config.hidden_act", "relu")))
    assert differing == [("vision_config.hidden_act", "quick_gelu", "relu")]


def test_a_tie_that_a_class_does_not_have_decides_nothing() -> None:
    """A classifier has no output table: whether it would be tied is no difference; of a masked language model it is."""
    for architecture, expected in (("BertForSequenceClassification", 0), ("BertForMaskedLM", 1)):
        config = {**FAMILIES["bert"][0], "architectures": [architecture]}
        pair = [structure_of({**config, "tie_word_embeddings": tied}) for tied in (True, False)]
        assert len(setting_differences(*pair)) == expected
