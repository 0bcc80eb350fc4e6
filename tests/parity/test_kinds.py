"""Every kind of published mergekit file: it gives mergekit's tensors, or a line names what does not agree.

`make mergekit-table` writes docs/mergekit.md from these runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from families_more import CASES as FAMILIES
from parity.kinds import KINDS, OTHERWISE, REFUSED, SAME, Kind
from safetensors.torch import load_file
from tiny import bert_config, save_checkpoint
from torch import Tensor

from merge.errors import MergeError
from merge.recipe.read import read_any
from merge.run.run import run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of mergekit's own imports
    pytest.importorskip("mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

LAYERS = {"num_hidden_layers": 4}
LLAMA = {**FAMILIES["LlamaForCausalLM"], **LAYERS, "attention_bias": False, "mlp_bias": False}
CONFIGS = {
    "decoders": LLAMA,
    "bfloat16": LLAMA,
    "encoders": bert_config(**LAYERS),
    "gpt2": FAMILIES["GPT2LMHeadModel"],
}
BOUND = 1e-6  # float32: the same sums, rounded in another order


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder of a, b, c and their base for each kind of model."""
    folders = {}
    for name, config in CONFIGS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        start = load_file(save_checkpoint(folders[name] / "base", config) / "model.safetensors")
        for seed, model in enumerate("abc", start=1):
            generator = torch.Generator().manual_seed(seed)
            moved = {n: t + 0.02 * torch.randn(t.shape, generator=generator) for n, t in start.items()}
            stored = {n: t.bfloat16() if name == "bfloat16" else t for n, t in moved.items()}
            save_checkpoint(folders[name] / model, config, tensors=stored)
    return folders


def theirs(text: str, folder: Path) -> dict[str, Tensor]:
    LoaderCache().loaders.clear()  # it knows models by their relative paths alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = MergeOptions(write_model_card=False, copy_tokenizer=False, quiet=True)
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(folder), options)
    return load_file(folder / "model.safetensors")


def alike(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are one result: up to rounding, in bfloat16 but for a few that round the other way."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype == torch.bfloat16:
        few = int((a != b).sum()) <= max(2, a.numel() // 50)
        return few and torch.allclose(a.float(), b.float(), rtol=2**-7, atol=0)
    return torch.allclose(a, b, rtol=0, atol=BOUND)


def outcome(kind: Kind, output: Path) -> tuple[str, str]:
    """Return the outcome of a file, and what is said about it."""
    path = output / "merge.yml"
    path.write_text(kind.text, encoding="utf-8")
    try:
        recipe, notes = read_any(path)
        report = run(recipe.model_copy(update={"output": str(output / "ours")}))
    except MergeError as error:
        return REFUSED, str(error).removeprefix(f"{path}:")
    ours, peers = load_file(output / "ours" / "model.safetensors"), theirs(kind.text, output / "theirs")
    same = ours.keys() == peers.keys() and all(alike(ours[name], peers[name]) for name in peers)
    return SAME if same else OTHERWISE, "\n".join((*notes, *report.notes))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_published_kind_of_file_comes_out_as_the_table_has_it(
    kind: Kind,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.chdir(models[kind.models])
    found, lines = outcome(kind, tmp_path)
    assert found == kind.outcome, lines
    assert kind.words in lines
    said = next((line for line in lines.splitlines() if kind.words and kind.words in line), "")
    record_property("mergekit table", {"kind": kind.name, "outcome": found, "words": said})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_file_is_read_or_refused_without_its_models(kind: Kind, tmp_path: Path) -> None:
    """Conversion alone: what is refused is refused before a model is opened."""
    (tmp_path / "merge.yml").write_text(kind.text, encoding="utf-8")
    if kind.outcome == REFUSED:
        with pytest.raises(MergeError, match="merge.yml:[0-9]+:[0-9]+: ") as raised:
            read_any(tmp_path / "merge.yml")
        assert kind.words in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1
    else:
        assert kind.words in "\n".join(read_any(tmp_path / "merge.yml")[1])


def test_no_kind_is_left_without_an_outcome() -> None:
    """The counter of the docs: names are unique, every file is YAML, and a difference or refusal is always named."""
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 44
    assert all(kind.words for kind in KINDS if kind.outcome != SAME)
    for kind in KINDS:
        assert all(isinstance(document, dict) for document in yaml.safe_load_all(kind.text)), kind.name
    assert sum(kind.outcome == SAME for kind in KINDS) >= 44


@pytest.mark.slow
def test_the_comparison_sees_one_changed_number(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: mergekit runs a file of another weight."""
    monkeypatch.chdir(models["decoders"])
    kind = KINDS[0]
    (tmp_path / "merge.yml").write_text(kind.text, encoding="utf-8")
    run(read_any(tmp_path / "merge.yml")[0].model_copy(update={"output": str(tmp_path / "ours")}))
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    peers = theirs(kind.text.replace("0.6", "0.61"), tmp_path / "theirs")
    assert not all(alike(ours[name], peers[name]) for name in peers)
