"""Redundant neurons: planted twins are merged and silent ones go, and the function stays what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import family_case
from families_more import CASES as MORE
from pruned import difference, outputs
from quick import quick_on
from tiny import random_tensors, save_checkpoint
from torch import Tensor

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import model_class
from merge.errors import OutputError, UsageError
from merge.layers.pruning.prune import Choice, prune_units
from merge.layers.pruning.redundancy import find_redundant
from merge.layers.pruning.units import unit_layers

BERT = ("bert.encoder.layer.{}.intermediate.dense", "bert.encoder.layer.{}.output.dense")
BOUND = 1e-5


def bert(folder: Path, act: str = "gelu", factor: float = 1.0, noise: float = 0.0) -> Checkpoint:
    """Write a BERT in which neurons 7 and 9 of layer 0 are `factor` times neuron 3, and nothing reads neuron 11 of layer 1."""
    config = family_case("bert", "ForSequenceClassification", hidden_act=act)
    tensors = random_tensors(config, 0, torch.float32)
    inside, out = (name.format(0) for name in BERT)
    for twin in (7, 9):
        for part in ("weight", "bias"):
            tensors[f"{inside}.{part}"][twin] = factor * tensors[f"{inside}.{part}"][3] + noise
    tensors[f"{BERT[1].format(1)}.weight"][:, 11] = 0
    assert out
    return open_checkpoint(str(save_checkpoint(folder, config, tensors=tensors)))


def run(folder: Path, config: Any) -> dict[str, Tensor]:
    model, info = model_class(config).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return outputs(model.eval(), random_inputs(config)[0])


@pytest.mark.parametrize("shrink", quick_on((True,), (False, True)))
def test_twins_are_merged_and_the_function_stays(shrink: bool, tmp_path: Path) -> None:
    """The control: zeroing the same neurons without adding their weights to the first gives another function."""
    checkpoint = bert(tmp_path / "m")
    report = prune_units(checkpoint, "neurons", Choice(redundant=1e-6), tmp_path / "out", shrink=shrink)
    assert report.pruned.facts["removed"] == {"0": [7, 9], "1": [11]}
    before, after = run(tmp_path / "m", checkpoint.config), run(tmp_path / "out", report.pruned.config)
    assert report.pruned.config["intermediate_size"] == (39 if shrink else 40)
    assert difference(before, after) < BOUND
    prune_units(checkpoint, "neurons", Choice(listed={0: (7, 9), 1: (11,)}), tmp_path / "zeroed")
    assert difference(before, run(tmp_path / "zeroed", checkpoint.config)) > 1e-3


@pytest.mark.parametrize(
    ("act", "factor", "merged"),
    [
        ("relu", -2.0, False),
        ("gelu", 2.0, False),
        ("tanh", 2.0, False),
        pytest.param("relu", 2.0, True, marks=pytest.mark.slow),
        pytest.param("tanh", -1.0, True, marks=pytest.mark.slow),
    ],
)
def test_the_group_of_the_activation_says_what_a_twin_is(act: str, factor: float, merged: bool, tmp_path: Path) -> None:
    """relu(2x) = 2 relu(x) and tanh(-x) = -tanh(x), and no more than that."""
    checkpoint = bert(tmp_path / "m", act, factor)
    found = find_redundant(checkpoint, unit_layers(checkpoint, "neurons")[0], 1e-6)
    assert {n: first for n, (first, _) in found.merged.items() if n != 9} == ({7: 3} if merged else {})
    if merged:
        assert found.merged[7][1] == pytest.approx(factor)
        prune_units(checkpoint, "neurons", Choice(redundant=1e-6), tmp_path / "out")
        before, after = (run(folder, checkpoint.config) for folder in (tmp_path / "m", tmp_path / "out"))
        assert difference(before, after) < BOUND


@pytest.mark.slow
def test_beside_a_gate_the_other_half_takes_any_factor(tmp_path: Path) -> None:
    """The gates must be equal; what multiplies them may differ by a factor, which the outgoing weights take."""
    config = MORE["LlamaForCausalLM"]
    tensors = random_tensors(config, 0, torch.float32)
    for name in ("gate_proj", "up_proj"):
        for part in ("weight", "bias"):
            rows = tensors[f"model.layers.0.mlp.{name}.{part}"]
            rows[7] = rows[3] * (-3.0 if name == "up_proj" else 1.0)
            rows[8] = rows[3] * (1.0 if name == "up_proj" else 2.0)  # another gate: no twin
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "m", config, tensors=tensors, tokenizer=False)))
    report = prune_units(checkpoint, "neurons", Choice(redundant=1e-6), tmp_path / "out")
    assert report.pruned.facts["removed"] == {"0": [7]}
    before, after = (run(folder, checkpoint.config) for folder in (tmp_path / "m", tmp_path / "out"))
    assert difference(before, after) < BOUND


def test_what_is_not_within_the_tolerance_stays(tmp_path: Path) -> None:
    checkpoint = bert(tmp_path / "m", noise=1e-3)
    near = {n: find_redundant(checkpoint, unit_layers(checkpoint, "neurons")[0], n).removed for n in (1e-6, 1e-2)}
    assert near == {1e-6: (9,), 1e-2: (7, 9)}  # 7 and 9 equal one another, and 3 but for the noise


def test_a_tolerance_that_changes_the_function_is_refused(tmp_path: Path) -> None:
    checkpoint = bert(tmp_path / "m")
    with pytest.raises(OutputError, match="does not compute what it should"):
        prune_units(checkpoint, "neurons", Choice(redundant=0.9), tmp_path / "out")
    with pytest.raises(UsageError, match="expects a number from 0 to 1"):
        prune_units(checkpoint, "neurons", Choice(redundant=2.0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_redundant_neurons_says_so(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "m")))
    with pytest.raises(UsageError, match="has no redundant neurons"):
        prune_units(checkpoint, "neurons", Choice(redundant=1e-6), tmp_path / "out")
