"""merge-models verify: the manifest against the files, recomputed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import bert_config, save_checkpoint

from merge.checkpoints.open import open_checkpoint
from merge.commands.merge_models import main
from merge.errors import CheckpointError, HubError
from merge.publish.card_results import add_results
from merge.publish.push import plan_push
from merge.recipe.recipe import make_recipe
from merge.run.run import run
from merge.run.verify import verify


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    folders = [str(save_checkpoint(tmp_path / name, seed=k)) for k, name in enumerate("ab")]
    run(make_recipe({"models": folders, "output": str(tmp_path / "out")}))
    return tmp_path / "out"


def test_a_fresh_merge_holds(merged: Path) -> None:
    """Every file but the manifest itself is listed, and both inputs are found."""
    found = verify(merged)
    assert found.holds
    assert set(found.files) == {p.name for p in merged.iterdir()} - {"merge.json"}
    assert set(found.inputs.values()) == {"same"}


def test_one_changed_weight_is_found(merged: Path) -> None:
    """One element of one tensor, the file's size and header unchanged."""
    tensors = load_file(merged / "model.safetensors")
    tensors["classifier.bias"] = tensors["classifier.bias"] + torch.tensor([0.0, 1e-3, 0.0])
    size = (merged / "model.safetensors").stat().st_size
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
    assert (merged / "model.safetensors").stat().st_size == size
    found = verify(merged)
    assert not found.holds
    assert found.files["model.safetensors"] == "changed"
    assert [state for name, state in found.files.items() if name != "model.safetensors" and state != "same"] == []


def test_missing_and_added_files_are_found(merged: Path) -> None:
    (merged / "recipe.yaml").unlink()
    (merged / "model-00001-of-00002.safetensors").write_bytes(b"stale")
    found = verify(merged)
    assert not found.holds
    assert found.files["recipe.yaml"] == "missing"
    assert found.files["model-00001-of-00002.safetensors"] == "not in the manifest"


def test_an_input_that_became_another_model_is_found_and_an_absent_one_is_said(merged: Path) -> None:
    save_checkpoint(merged.parent / "a", seed=7)
    assert not verify(merged).holds
    (merged.parent / "a").rename(merged.parent / "elsewhere")
    found = verify(merged)
    assert found.inputs[str(merged.parent / "a")] == "not here"
    assert found.holds


def test_scores_added_to_the_card_keep_the_manifest_true(merged: Path) -> None:
    record = {
        "kind": "scores", "key": "k", "task": "mnli", "split": "validation", "data": "rows", "n": 5,
        "model": {"name": "out", "hash": open_checkpoint(str(merged)).content_hash},
        "scores": {"accuracy": 0.5, "loss": 0.7},
    }  # fmt: skip
    results = merged.parent / "results.json"
    results.write_text(json.dumps({"format": 1, "results": [record]}))
    before = (merged / "README.md").read_bytes()
    add_results(merged, results)
    assert (merged / "README.md").read_bytes() != before
    assert verify(merged).holds


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": {}, "models": [{}]}'])
def test_a_malformed_manifest_is_one_line(text: str, merged: Path) -> None:
    (merged / "merge.json").write_text(text)
    with pytest.raises(CheckpointError, match="malformed") as caught:
        verify(merged)
    assert "\n" not in str(caught.value)


def test_the_command_says_each_file_and_exits_1_when_it_does_not_hold(
    merged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["merge-models", "verify", str(merged)])
    main()
    assert "same                 model.safetensors" in capsys.readouterr().out
    (merged / "config.json").write_text("{}")
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert "changed              config.json" in said.out
    assert said.err.count("\n") == 1
    assert "its manifest merge.json" in said.err
    monkeypatch.setattr(sys, "argv", ["merge-models", "verify", str(merged.parent / "a")])
    with pytest.raises(SystemExit):
        main()
    assert "no merge.json" in capsys.readouterr().err


def test_an_edited_folder_is_verified_by_its_own_manifest(tmp_path: Path) -> None:
    """edit-layers states its files and its input as merge-models does."""
    from merge.layers.edit import edit_layers
    from merge.layers.plans.plan import LayerPlan

    source = open_checkpoint(str(save_checkpoint(tmp_path / "a")))
    edit_layers(source, LayerPlan.keep([1]), tmp_path / "out")
    assert verify(tmp_path / "out").holds
    (tmp_path / "out" / "config.json").write_text("{}", encoding="utf-8")
    found = verify(tmp_path / "out")
    assert (found.files["config.json"], found.manifest) == ("changed", "edit.json")


def test_the_base_is_an_input_like_the_models(tmp_path: Path) -> None:
    folders = [str(save_checkpoint(tmp_path / name, seed=seed)) for seed, name in enumerate(("a", "b", "base"))]
    recipe = {"models": folders[:2], "base": folders[2], "method": "ties", "output": str(tmp_path / "out")}
    run(make_recipe(recipe))
    assert verify(tmp_path / "out").inputs == dict.fromkeys(folders, "same")
    save_checkpoint(tmp_path / "base", seed=7)
    found = verify(tmp_path / "out")
    assert found.inputs[folders[2]] == "changed"
    assert not found.holds


@pytest.mark.slow
def test_a_transform_that_was_applied_is_an_input(tmp_path: Path) -> None:
    """Another file is another merge; one that is gone says nothing against what is here."""
    config = bert_config(num_hidden_layers=1)
    folders = [str(save_checkpoint(tmp_path / name, config, seed=k, tokenizer=False)) for k, name in enumerate("ab")]
    run(make_recipe({"models": folders, "align": {"by": "weights"}, "output": str(tmp_path / "first")}))
    assert verify(tmp_path / "first").inputs == dict.fromkeys(folders, "same")
    file = tmp_path / "first" / "transform.safetensors"
    run(make_recipe({"models": folders, "align": {"apply": str(file)}, "output": str(tmp_path / "out")}))
    found = verify(tmp_path / "out")
    assert found.holds
    assert found.inputs == dict.fromkeys([*folders, str(file)], "same")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = verify(tmp_path / "out")
    assert not found.holds
    assert found.inputs == {**dict.fromkeys(folders, "same"), str(file): "changed"}
    file.unlink()
    found = verify(tmp_path / "out")
    assert found.holds
    assert found.inputs[str(file)] == "not here"


def test_the_folder_of_several_heads_names_the_models_inside(tmp_path: Path) -> None:
    """--heads keep-all writes a folder for each head. The control: a folder with nothing inside."""
    folders = [str(save_checkpoint(tmp_path / name, seed=k)) for k, name in enumerate("ab")]
    run(make_recipe({"models": folders, "heads": "keep-all", "output": str(tmp_path / "out")}))
    inside = f"The models are inside: {tmp_path / 'out' / 'a'}, {tmp_path / 'out' / 'b'}."
    with pytest.raises(CheckpointError, match=re.escape(inside)):
        verify(tmp_path / "out")
    with pytest.raises(HubError, match=re.escape(inside)):
        plan_push(tmp_path / "out", "me/x", None)
    assert verify(tmp_path / "out" / "a").holds
    with pytest.raises(CheckpointError, match="write.$"):
        verify(tmp_path / "a")
