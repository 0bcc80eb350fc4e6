"""Which weights are stored as (inputs, outputs): what each module does with its weight says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import bert_config, save_checkpoint

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import build
from merge.methods import make_method
from merge.methods.statistics.orientation import transposed_weights
from merge.recipe.recipe import make_recipe
from merge.run.plan.heads import plan_heads
from merge.run.plan.schedule import make_schedule
from merge.run.run import run

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 12, "n_positions": 6}
# Square weights too: attention's output, and a feed-forward layer as wide as the stream.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **SMALL, "n_inner": 8},
    "gpt2 classifier": {"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"], **SMALL},
    "openai-gpt": {"model_type": "openai-gpt", "architectures": ["OpenAIGPTLMHeadModel"], **SMALL},
    "imagegpt": {"model_type": "imagegpt", "architectures": ["ImageGPTForCausalImageModeling"], **SMALL},
    "decision_transformer": {
        "model_type": "decision_transformer",
        "architectures": ["DecisionTransformerModel"],
        **SMALL,
        "hidden_size": 8,
        "state_dim": 3,
        "act_dim": 2,
        "max_ep_len": 5,
    },
    "bert": bert_config(),
}


def acts_as_inputs_outputs(module: Any) -> bool:
    """Return whether the module computes x W + b with its weight as stored, and not x W^T + b."""
    weight = module.weight.double()
    generator = torch.Generator().manual_seed(0)
    for size, turned in ((weight.shape[0], weight), (weight.shape[1], weight.T)):
        x = torch.randn(3, size, generator=generator, dtype=torch.float64)
        try:
            y = module.double()(x)
        except RuntimeError:
            continue
        expected = x @ turned + (0 if module.bias is None else module.bias)
        if y.shape == expected.shape and torch.allclose(y, expected, atol=1e-9):
            return turned is weight
    raise AssertionError("neither")


def model_of(checkpoint: Checkpoint) -> Any:
    names = {checkpoint.written_name(name): tensor for name, tensor in checkpoint.state_dict().items()}
    return build(checkpoint.config, names)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_is_transposed_where_its_module_multiplies_it_so(family: str, tmp_path: Path) -> None:
    """Asked of every module with a matrix and a bias by running it: what is stored as (inputs, outputs), and nothing else."""
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path, FAMILIES[family], seed=0)))
    found = transposed_weights(checkpoint)
    canonical = {checkpoint.written_name(name): name for name in checkpoint.tensors}
    expected, seen = set(), 0
    for path, module in model_of(checkpoint).named_modules():
        name = canonical.get(f"{path}.weight")
        if name is not None and "bias" in module._parameters and len(checkpoint.shapes[name]) == 2:
            seen += 1
            if acts_as_inputs_outputs(module):
                expected.add(name)
    assert found == expected
    assert seen > 3
    assert bool(expected) == (family != "bert")


METHODS_BY_ROWS = {
    "wudi": {},
    "della": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "nuslerp": {"vectors": "rows"},
    "model_stock": {"filter_wise": True},
    "arcee_fusion": {},
}


@pytest.mark.parametrize("method", METHODS_BY_ROWS)
def test_a_schedule_turns_what_the_architecture_stores_transposed(method: str, tmp_path: Path) -> None:
    """For methods that tell rows from columns, and only for these tensors; nothing for plain averages."""
    for seed, name in enumerate(("a", "b", "base")):
        save_checkpoint(tmp_path / name, FAMILIES["gpt2"], seed=seed)
    names = ["a"] if method == "arcee_fusion" else ["a", "b"]
    values = {"models": [str(tmp_path / n) for n in names], "base": str(tmp_path / "base"), "method": method}
    recipe = make_recipe({**values, "settings": METHODS_BY_ROWS[method]})
    from merge.checkpoints.model_set import ModelSet

    opened = ModelSet(tuple(open_checkpoint(e.model) for e in recipe.models), open_checkpoint(str(tmp_path / "base")))
    jobs = make_schedule(recipe, plan_heads(None, opened)).jobs
    turned = {job.name for job in jobs if job.transposed}
    assert turned == transposed_weights(opened.models[0])
    plain = make_recipe({"models": [str(tmp_path / "a"), str(tmp_path / "b")], "method": "linear"})
    two = ModelSet(tuple(open_checkpoint(str(tmp_path / n)) for n in "ab"))
    assert not any(job.transposed for job in make_schedule(plain, plan_heads(None, two)).jobs)


def test_wudi_of_gpt2_solves_the_side_of_the_inputs(tmp_path: Path) -> None:
    """A whole run: every Conv1D weight is the transpose of wudi on its Linear twin, and not wudi on what is stored."""
    opened = {
        n: open_checkpoint(str(save_checkpoint(tmp_path / n, FAMILIES["gpt2"], seed=s))) for s, n in enumerate("abc")
    }
    a, b, base = opened.values()
    run(
        make_recipe(
            {
                "models": [a.source, b.source],
                "base": base.source,
                "method": "wudi",
                "output": str(tmp_path / "merged"),
            }
        )
    )
    merged, wudi = open_checkpoint(str(tmp_path / "merged")), make_method("wudi", {}, [None, None])
    off = 0
    for name in transposed_weights(a):
        right = wudi([m.tensor(name).T for m in (a, b)], base.tensor(name).T).T
        assert torch.allclose(merged.tensor(name), right, rtol=0, atol=1e-6), name
        off += not torch.allclose(
            merged.tensor(name), wudi([m.tensor(name) for m in (a, b)], base.tensor(name)), atol=1e-3
        )
    assert off == 4
