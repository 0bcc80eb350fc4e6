"""Repairs as edit-layers runs them: what auto falls back to, what healing does, and that equal runs give equal bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import bert_config, save_checkpoint, write_text

import merge
from merge.checkpoints.open import open_checkpoint
from merge.layers.edit import opened_whole
from merge.layers.plans.plan import LayerPlan
from merge.layers.plans.text import parse_plan
from merge.layers.repair import seam
from merge.layers.repair.heal import distillation_loss
from merge.layers.repair.repair import RepairSettings, repaired
from merge.layers.repair.ridge import Fitted
from merge.text.source import TextSource


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repairs")
    save_checkpoint(folder / "m", bert_config(num_hidden_layers=4, intermediate_size=48))
    write_text(folder / "text.txt", 60)
    return folder


def source(store: Path, samples: int = 60) -> TextSource:
    return TextSource(str(store / "text.txt"), None, samples)


def test_auto_keeps_the_plain_model_where_a_fit_is_worse(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the usual ridges the refit of a random model is kept. Where the missing layers hardly change what they read, so that
    the plain model is near, weights of noise are not."""
    models, plan = opened_whole([open_checkpoint(str(store / "m"))]), LayerPlan.keep([0, 3])
    good = repaired(models, plan, RepairSettings("auto", source(store)))
    tensors = load_file(store / "m/model.safetensors")
    for name, tensor in tensors.items():
        if "LayerNorm.weight" in name and "encoder" in name:
            tensor.fill_(1.0)
        elif "encoder" in name and ("LayerNorm.bias" in name or (".output.dense" in name and "layer.0." not in name)):
            tensor.mul_(0.01 if "dense" in name else 0.0)
    shutil.copytree(store / "m", store / "still")
    save_file(tensors, store / "still/model.safetensors", {"format": "pt"})
    models = opened_whole([open_checkpoint(str(store / "still"))])
    assert good.assembly.computed
    assert good.facts["repair"]["distance"]["repaired"] < good.facts["repair"]["distance"]["plain"]

    def noise(_fitting: Any, _held: Any, start: torch.Tensor, *_: Any) -> Fitted:
        return Fitted(
            50 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0)).double(), 0.0, {}, 0.0, 1
        )

    monkeypatch.setattr(seam, "fit", noise)
    bad = repaired(models, plan, RepairSettings("auto", source(store)))
    assert bad.assembly.computed == {}
    assert bad.facts["repair"]["kept"] == "plain"
    assert any("auto kept the plain model" in note for note in bad.notes)


def test_auto_says_why_it_does_nothing(store: Path) -> None:
    models = opened_whole([open_checkpoint(str(store / "m"))])
    unrepaired = repaired(models, LayerPlan.keep([2, 3]), RepairSettings("auto", source(store)))
    assert unrepaired.assembly.computed == {}
    assert any("no kept layer is below that seam" in note for note in unrepaired.notes)


def test_affine_puts_a_fitted_layer_where_layers_are_missing(store: Path) -> None:
    models = opened_whole([open_checkpoint(str(store / "m"))])
    done = repaired(models, LayerPlan.keep([0, 3]), RepairSettings("affine", source(store)))
    assert done.assembly.plan == parse_plan("A0, affine(A1->A3), A3", ["A"])
    assert done.assembly.config["num_hidden_layers"] == 3


def test_healing_lowers_the_loss_and_the_same_run_gives_the_same_bytes(store: Path) -> None:
    made = [
        merge.edit(store / "m", "0,3", repair="auto", heal_steps=6, heal_rate=1e-4, text=store / "text.txt")
        for _ in range(2)
    ]
    record = made[0].to_json()["repair"]["healing"]
    assert record["last"] < record["first"]
    first, second = ((one.folder / "model.safetensors").read_bytes() for one in made)
    assert first == second
    plain = merge.edit(store / "m", "0,3")
    assert (plain.folder / "model.safetensors").read_bytes() != first
    card = (made[0].folder / "README.md").read_text()
    assert "healed by 6 steps of distillation" in card
    assert "seam refit of output layer 0, without layers 1-2" in card


def test_the_loss_of_logits_is_the_divergence_by_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    outputs = [type("Output", (dict,), {"logits": logits})(logits=logits) for logits in (left, right)]
    loss, words = distillation_loss(outputs[0], outputs[1], {"input_ids": torch.zeros(4, 2)})
    p, q = right.softmax(-1), left.softmax(-1)
    assert abs(float(loss) - float((p * (p / q).log()).sum(-1).mean())) < 1e-12
    assert "KL" in words
