"""Device: models run where they are told to, and what is found there is what the CPU finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.test_aligners import make_pair
from quick import quick_on
from tiny import bert_config, random_tensors, save_checkpoint, write_text

from merge.alignment import pair as pair_module
from merge.alignment.matchers import aligner
from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.model_set import ModelSet
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import build, on_device
from merge.recipe.recipe import make_recipe
from merge.run.plan.heads import plan_heads
from merge.run.rebase import rebase

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_a_model_on_a_device_is_given_and_gives_back_what_lies_on_the_cpu() -> None:
    """Bit for bit what the model says by itself, and with the hook that carries its inputs there."""
    config = bert_config()
    tensors, batch = random_tensors(config, 0, torch.float32), random_inputs(config)[0]
    plain, placed = build(config, tensors), on_device(build(config, tensors), "cpu")
    with torch.inference_mode():
        expected, found = (model(**batch).logits for model in (plain, placed))
    assert torch.equal(expected, found)
    assert placed._hf_hook.execution_device == "cpu"
    assert not hasattr(plain, "_hf_hook")


@pytest.mark.parametrize("device", quick_on(("elsewhere",), ("cpu", "elsewhere")))
def test_every_model_of_an_alignment_runs_on_the_device_of_the_run(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two unrelated models: both ends, the one between them and those of the proof; on the CPU none is moved."""
    asked: list[str] = []

    def recorded(model: Any, where: str) -> Any:
        asked.append(where)
        return model

    monkeypatch.setattr(pair_module, "on_device", recorded)
    folders = [save_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    text = str(write_text(tmp_path / "text.txt", 40))
    recipe = make_recipe(
        {
            "models": [str(f) for f in folders],
            "output": str(tmp_path / "out"),
            "align": {"by": "activations", "text": text},
        }
    )
    models = ModelSet(tuple(open_checkpoint(str(folder)) for folder in folders))
    rebase(recipe.align, plan_heads(None, models), device=device)
    assert set(asked) == ({"elsewhere"} if device == "elsewhere" else set())
    assert len(asked) >= 5 * (device == "elsewhere")


@NO_GPU
@pytest.mark.parametrize("by", ["weights", "activations", "activations+weights", "learned"])
def test_a_gpu_brings_a_planted_copy_back(by: str) -> None:
    pair, back = make_pair("BertForSequenceClassification", planted_seed=2)
    found = aligner(by)(replace(pair, device="cuda"))(frozenset(pair.kinds()))
    assert all(torch.equal(found.permutation.indices[axis], back.indices[axis]) for axis in back.indices)
