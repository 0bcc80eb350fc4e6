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
from merge.layers.repair import heal, seam
from merge.layers.repair.heal import distillation_loss
from merge.layers.repair.repair import RepairSettings, _Work, repaired
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


@pytest.mark.parametrize(("after", "kept"), [(0.9, False), (1.0, True), (1.1, True)])
def test_auto_keeps_a_refit_that_is_nearer_and_no_other(
    after: float, kept: bool, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a plain model at distance 1 from the full one; a refit that is asked for by name is kept wherever it is."""
    models, plan = opened_whole([open_checkpoint(str(store / "m"))]), LayerPlan.keep([0, 3])
    for kind in ("auto", "seam"):
        distances = iter((1.0, after))
        monkeypatch.setattr(_Work, "_distance", lambda *_, left=distances: next(left))
        done = repaired(models, plan, RepairSettings(kind, source(store), 0.1))
        assert bool(done.assembly.computed) != (kept and kind == "auto")


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


def test_a_healed_splice_learns_from_the_model_whose_head_it_has(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "n", bert_config(num_hidden_layers=4, intermediate_size=48), 1)
    models = opened_whole([open_checkpoint(str(folder)) for folder in (store / "m", tmp_path / "n")])
    teachers: list[Any] = []

    def watched(_student: Any, teacher: Any, *_: Any) -> heal.Healing:
        teachers.append(teacher)
        return heal.Healing(1, 1e-4, 1, "nothing", 0.0, 0.0)

    monkeypatch.setattr(heal, "heal", watched)
    plan = parse_plan("A[0-1], B[2-3]", ["A", "B"])
    done = repaired(models, plan, RepairSettings("none", source(store), heal_steps=1))
    assert "distillation from " + str(tmp_path / "n") in done.sentences[-1]
    (teacher,) = teachers
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(teacher.state_dict()[name], models[1].tensor(name).float())
    assert not torch.equal(teacher.state_dict()[name], models[0].tensor(name).float())


def test_the_loss_of_logits_is_the_divergence_by_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    outputs = [type("Output", (dict,), {"logits": logits})(logits=logits) for logits in (left, right)]
    loss, words = distillation_loss(outputs[0], outputs[1], {"input_ids": torch.zeros(4, 2)})
    p, q = right.softmax(-1), left.softmax(-1)
    assert abs(float(loss) - float((p * (p / q).log()).sum(-1).mean())) < 1e-12
    assert "KL" in words
