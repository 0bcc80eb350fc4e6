"""Legacy buffers: numbers that follow from the config are known for what they are, in every dtype files hold them in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architecture_case import CASES

from merge.checkpoints.names.buffers import buffer_of
from merge.checkpoints.structure import Structure, structure_of

LLAMA = structure_of(CASES["LlamaForCausalLM"][0])
BEIT = structure_of(CASES["beit relative"][0])


def holds(name: str, numbers: torch.Tensor, structure: Structure = LLAMA) -> bool:
    kind = buffer_of(name, numbers.ndim)
    assert kind is not None
    return kind.matches(numbers.float().numpy(), structure)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_frequencies_are_those_of_the_configs_theta(dtype: torch.dtype) -> None:
    """Rounding to sixteen bits is no difference; another theta, with which the model would read other places, is one."""
    for theta, expected in ((10000.0, True), (500000.0, False), (9000.0, False)):
        found = theta ** (-torch.arange(0, 64, 2) / 64)
        assert holds("model.layers.0.self_attn.rotary_emb.inv_freq", found.to(dtype)) is expected


def test_a_model_without_a_theta_has_no_frequencies() -> None:
    found = 10000.0 ** (-torch.arange(0, 64, 2) / 64)
    assert not holds("encoder.layers.0.attn.rotary_emb.inv_freq", found, structure_of(CASES["RoFormerModel"][0]))


@pytest.mark.parametrize("value", [-1e4, -1e9, torch.finfo(torch.float16).min, -np.inf])
def test_a_masked_score_is_large_whatever_it_was(value: float) -> None:
    assert holds("h.0.attn.masked_bias", torch.tensor(value))
    assert not holds("h.0.attn.masked_bias", torch.tensor(-1.0))


def test_the_causal_mask_is_a_lower_triangle() -> None:
    mask = torch.ones(1, 1, 5, 5).tril()
    assert holds("h.0.attn.bias", mask)
    assert not holds("h.0.attn.bias", mask.mT)
    assert not holds("h.0.attn.bias", mask.tril(-1))


def test_distances_of_patches_are_counted_in_the_table_of_the_window() -> None:
    """Of two patches the entry is 3 (row - row' + 1) + column - column' + 1; after them from, to and of the class token."""
    table = torch.empty(5, 5)
    for i in range(4):
        for j in range(4):
            table[i + 1, j + 1] = 3 * (i // 2 - j // 2 + 1) + i % 2 - j % 2 + 1
    table[0, :], table[:, 0], table[0, 0] = 9, 10, 11
    assert holds("attention.relative_position_index", table, BEIT)
    assert not holds("attention.relative_position_index", table.T, BEIT)
    assert not holds("attention.relative_position_index", table, LLAMA)


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("h.0.attn.bias", 1),
        ("h.0.attn.c_attn.bias", 1),
        ("my_position_ids", 1),
        ("embeddings.position_embeddings.weight", 2),
    ],
)
def test_a_weight_is_no_buffer(name: str, rank: int) -> None:
    """Where ModernBERT keeps an attention's bias, GPT-2 kept a mask: the number of axes tells them apart."""
    assert buffer_of(name, rank) is None


def test_a_buffer_of_the_model_itself_is_known_without_a_path() -> None:
    assert buffer_of("position_ids", 2) is not None
