"""The norm that writes a state: its gain and bias, and what it reads, against the states of the live model."""

from __future__ import annotations

import pytest
import torch
from layered import checkpoint_of
from quick import quick_on

from merge.checkpoints.inputs import random_inputs
from merge.layers.activations import live_layers, live_model, states_of
from merge.layers.stitching.norms import divisible_state, divisor, norm_of_state, states_before_norms

# Families whose norms come last -> the lowest state that a norm writes.
LOWEST = {
    "bert": 0, "roberta": 0, "distilbert": 0, "electra": 1, "albert": 1, "xlnet": 1, "roformer": 1, "mpnet": 0, "deberta": 0,
}  # fmt: skip


@pytest.mark.parametrize("kind", quick_on(("bert", "albert"), LOWEST))
def test_gain_and_bias_make_every_state_of_what_is_read_before_its_norm(kind: str) -> None:
    """A state read so has mean 0 and variance 1; below the lowest such state there is no norm."""
    checkpoint = checkpoint_of(kind)
    live = live_layers(live_model(checkpoint))
    batch = random_inputs({**checkpoint.config, "max_position_embeddings": 24, "type_vocab_size": 0})[0]
    cuts = range(live.total + 1)
    norms = {cut: norm for cut in cuts if (norm := norm_of_state(checkpoint, cut, live)) is not None}
    assert list(norms) == list(range(LOWEST[kind], live.total + 1))
    states, before = states_of(live, batch, cuts), states_before_norms(live, batch, norms)
    assert before.keys() == norms.keys()
    for cut, norm in norms.items():
        assert torch.allclose(before[cut].mean(1), torch.zeros(len(before[cut])), atol=1e-5)
        assert torch.allclose(before[cut] * norm.gain + norm.bias, states[cut], atol=1e-5)
        assert torch.equal(divisible_state(live, batch, cut, norm), before[cut] * divisor(norm.gain) + norm.bias)
