"""A mergekit file gives here what it gives there: whole runs of both on tiny classifiers, compared tensor by tensor."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import bert_config, save_checkpoint
from torch import Tensor

from merge.recipe.read import read_any
from merge.run.run import run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of mergekit's own imports
    pytest.importorskip("mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

LAYERS = 4
BOUND = 1e-6
# Two bf16 numbers next to each other differ by up to 2^-7 of their size; both tools round once, from sums that differ by
# 1e-7.
BF16 = 2**-7

LINEAR = """\
models:
  - model: ./a
    parameters:
      weight:
        - {filter: attention, value: [0.2, 1, 0.4]}
        - {filter: layer.3.output, value: 3}
        - {value: 1}
  - model: ./b
    parameters: {weight: 0.5}
merge_method: linear
"""
SLERP = """\
slices:
  - sources:
      - {model: ./a, layer_range: [0, 4]}
      - {model: ./b, layer_range: [0, 4]}
merge_method: slerp
base_model: ./b
parameters:
  t:
    - {filter: attention, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: intermediate, value: [1, 0.5, 0.7, 0.3, 0]}
    - {value: 0.4}
dtype: float32
"""
TIES = """\
models:
  - {model: ./a, parameters: {weight: 1, density: 0.5}}
  - {model: ./b, parameters: {weight: 0.4, density: [0.3, 0.3]}}
  - {model: ./base}
merge_method: ties
base_model: ./base
parameters: {lambda: 0.9, int8_mask: true}
"""
TASKS = """\
models:
  - {model: ./a, parameters: {weight: 0.7}}
  - {model: ./b, parameters: {weight: -0.4}}
merge_method: task_arithmetic
base_model: ./base
parameters: {lambda: 0.8}
"""
PASSED = """\
slices:
  - sources: [{model: ./a, layer_range: [0, 3], parameters: {scale: [{filter: output.dense, value: 0.5}, {value: 1}]}}]
  - sources: [{model: ./b, layer_range: [1, 4], parameters: {scale: [{filter: output.dense, value: 0.5}, {value: 1}]}}]
merge_method: passthrough
"""
OVERLAP = """\
slices:
  - sources: [{model: ./a, layer_range: [0, 2]}]
  - sources:
      - {model: ./a, layer_range: [2, 4]}
      - {model: ./b, layer_range: [0, 2], parameters: {weight: 3}}
  - sources: [{model: ./b, layer_range: [2, 4]}]
merge_method: linear
parameters: {weight: 1}
"""
SLICED_SLERP = """\
slices:
  - sources: [{model: ./a, layer_range: [0, 1]}, {model: ./b, layer_range: [0, 1]}]
    parameters: {t: 0.2}
  - sources: [{model: ./b, layer_range: [1, 4]}, {model: ./a, layer_range: [1, 4]}]
    parameters: {t: [0.6, 0.8, 0.6]}
merge_method: slerp
base_model: ./a
"""
# In float32 mergekit's arc cosine of nearly opposite columns of three entries is off by 1e-5.
NUSLERP = """\
models:
  - {model: ./a, parameters: {weight: 1}}
  - {model: ./b, parameters: {weight: [{filter: bias, value: 3}, {value: 2}]}}
merge_method: nuslerp
base_model: ./base
parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}
dtype: float64
out_dtype: float32
"""
STOCK = """\
models: [{model: ./a}, {model: ./b}, {model: ./c}]
merge_method: model_stock
base_model: ./base
parameters: {filter_wise: true}
"""
BASE_COUNTS = """\
models: [{model: ./a, parameters: {weight: 2}}]
merge_method: linear
base_model: ./base
parameters: {weight: 0.5, normalize: false}
"""
CRUMBS = """\
models: [{model: ./a, parameters: {weight: 1}}, {model: ./b, parameters: {weight: 0.5}}]
merge_method: breadcrumbs_ties
base_model: ./base
parameters: {density: 0.7, gamma: 0.1}
"""
SCE = """\
models: [{model: ./a}, {model: ./b}, {model: ./c}]
merge_method: sce
base_model: ./base
parameters: {select_topk: 0.4}
"""
KEPT = """\
models: [{model: ./a, parameters: {weight: 1}}, {model: ./b, parameters: {weight: 0.5}}]
merge_method: della
base_model: ./base
"""
HALF = LINEAR + "out_dtype: bfloat16\n"

FILES = {
    "linear with a gradient under a filter": LINEAR,
    "linear, written in bf16": HALF,
    "linear, where the base is one of the models": BASE_COUNTS,
    "slerp with gradients under filters": SLERP,
    "slerp, a gradient in one of two slices": SLICED_SLERP,
    "ties": TIES,
    "task arithmetic": TASKS,
    "passthrough": PASSED,
    "layers that overlap": OVERLAP,
    "nuslerp of columns, from a base": NUSLERP,
    "model stock by rows": STOCK,
    "breadcrumbs with a vote": CRUMBS,
    "sce": SCE,
    "della that drops nothing": KEPT,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classifiers of one shape; task vectors a fifth of the weights, so that angles and ranks are those of fine-tunes."""
    folder = tmp_path_factory.mktemp("models")
    base = save_checkpoint(folder / "base", bert_config(num_hidden_layers=LAYERS), seed=0)
    start = load_file(base / "model.safetensors")
    for seed, name in enumerate("abc", start=1):
        generator = torch.Generator().manual_seed(seed)
        moved = {n: t + 0.2 * torch.randn(t.shape, generator=generator) for n, t in start.items()}
        save_checkpoint(folder / name, bert_config(num_hidden_layers=LAYERS), tensors=moved)
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the four classifiers in it."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(models, tmp_path, dirs_exist_ok=True))


@pytest.fixture(scope="module")
def peers(models: Path) -> Callable[[str], Path]:
    """Return a function that gives the folder that mergekit writes for a file; each file is merged once."""

    @cache
    def written(text: str) -> Path:
        LoaderCache().loaders.clear()  # it knows models by their relative paths alone
        output = models.with_name(f"{models.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}")
        with warnings.catch_warnings(), contextlib.chdir(models):
            warnings.simplefilter("ignore")
            options = MergeOptions(write_model_card=False, copy_tokenizer=False, quiet=True)
            run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(output), options)
        return output

    return written


@pytest.fixture
def theirs(peers: Callable[[str], Path]) -> Callable[[str], dict[str, Tensor]]:
    """Return a function that gives what mergekit writes for a file."""
    return lambda text: load_file(peers(text) / "model.safetensors")


def ours(text: str, folder: Path) -> dict[str, Tensor]:
    """Return what the converted recipe writes."""
    (folder / "merge.yml").write_text(text, encoding="utf-8")
    run(read_any(folder / "merge.yml")[0])
    return load_file(folder / "merged" / "model.safetensors")


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    assert all(a[name].dtype == b[name].dtype for name in a)
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


@pytest.mark.parametrize("name", [name for name, text in FILES.items() if text is HALF])
def test_a_mergekit_file_in_bfloat16_merges_to_the_same_tensors_in_bfloat16(
    name: str, folder: Path, theirs: Callable[[str], dict[str, Tensor]]
) -> None:
    expected, found = theirs(FILES[name]), ours(FILES[name], folder)
    assert all(torch.allclose(expected[n].float(), found[n].float(), rtol=BF16, atol=0) for n in expected)
    assert all(t.dtype == torch.bfloat16 for t in expected.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, text in FILES.items() if text is not HALF])
def test_a_mergekit_file_merges_to_the_same_tensors(
    name: str, folder: Path, peers: Callable[[str], Path], theirs: Callable[[str], dict[str, Tensor]]
) -> None:
    """Names, shapes, dtypes and values; and none of the models, nor the base, would do in its place."""
    expected, found = theirs(FILES[name]), ours(FILES[name], folder)
    assert distance(expected, found) < BOUND
    counts = [
        json.loads((written / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
        for written in (folder / "merged", peers(FILES[name]))
    ]
    assert counts[0] == counts[1]
    for model in ("a", "b", "base"):
        parent = load_file(folder / model / "model.safetensors")
        assert any(
            parent[n].shape != t.shape or (parent[n] - t).abs().max() > 1e-2 for n, t in expected.items() if n in parent
        )


CHANGED = {
    "the gradient": (LINEAR, "[0.2, 1, 0.4]", "[0.2, 1, 0.5]"),
    "the order of filters": (
        LINEAR,
        "- {filter: attention, value: [0.2, 1, 0.4]}\n        - {filter: layer.3.output, value: 3}",
        "- {filter: output, value: 3}\n        - {filter: attention, value: [0.2, 1, 0.4]}",
    ),
    "which end is the base": (SLERP, "base_model: ./b", "base_model: ./a"),
    "density": (TIES, "density: 0.5", "density: 0.6"),
    "lambda": (TASKS, "lambda: 0.8", "lambda: 0.7"),
    "columns": (NUSLERP, ", nuslerp_row_wise: true", ""),
    "normalize": (BASE_COUNTS, ", normalize: false", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGED)
def test_the_comparison_sees_one_changed_parameter(
    name: str, folder: Path, theirs: Callable[[str], dict[str, Tensor]]
) -> None:
    """The negative control: mergekit runs the file, we run it with one parameter changed."""
    text, old, new = CHANGED[name]
    assert old in text
    assert distance(theirs(text), ours(text.replace(old, new), folder)) > 100 * BOUND


@pytest.mark.slow
def test_after_the_layers_a_gradient_has_mergekits_first_value(
    folder: Path, theirs: Callable[[str], dict[str, Tensor]]
) -> None:
    """Pooler and classifier too; without `outside`, a gradient of ours ends there with its last value."""
    text = SLERP.replace("- {value: 0.4}", "- {value: [0.2, 0.6]}")
    expected, found = theirs(text), ours(text, folder)
    assert distance(expected, found) < BOUND
    recipe = read_any(folder / "merge.yml")[0]
    assert recipe.settings["lam"] == {"gradient": [0.2, 0.6], "outside": 0.2}
    plain = recipe.model_copy(
        update={"settings": {**recipe.settings, "lam": {"gradient": [0.2, 0.6]}}, "output": "plain"}
    )
    run(plain)
    ended = load_file(folder / "plain" / "model.safetensors")
    off = {name for name in expected if not torch.allclose(expected[name], ended[name], rtol=0, atol=BOUND)}
    assert off == {f"{part}.{kind}" for part in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")}
