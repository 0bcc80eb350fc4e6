"""Names of the models of a sweep differ, and one model is counted once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_checkpoint

from evals.clusters.sweep.names import different_models, short_names
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.open import open_checkpoint


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(save_checkpoint(tmp_path_factory.mktemp("models") / "a", seed=1)))


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["zoo/a", "zoo/b"], ["a", "b"]),
        (["run/checkpoint-100", "run/checkpoint-200"], ["run/checkpoint-100", "run/checkpoint-200"]),
        (["x/run/checkpoint-1", "y/run/checkpoint-1"], ["x/run/checkpoint-1", "y/run/checkpoint-1"]),
        (["x/a", "y/a", "y/b"], ["x/a", "y/a", "b"]),
        (["/one/a", "one/a"], ["one/a (HASH)", "one/a (HASH)"]),
        (["BertModel-1", "BertModel-2"], ["BertModel-1", "BertModel-2"]),
    ],
)
def test_names_are_as_short_as_they_can_be(opened: Checkpoint, sources: list[str], names: list[str]) -> None:
    models = [replace(opened, source=source) for source in sources]
    expected = [name.replace("HASH", opened.content_hash[:8]) for name in names]
    assert list(short_names(models)) == expected


def test_a_hub_id_keeps_its_name(opened: Checkpoint) -> None:
    hub = [replace(opened, source=name, commit="abc") for name in ("me/a", "you/a")]
    assert short_names(hub) == ("me/a", "you/a")


def test_one_model_is_counted_once(tmp_path: Path) -> None:
    """In another folder too; one tensor of other bits, or other labels of the same weights, is another model (controls)."""
    folder = save_checkpoint(tmp_path / "a", seed=1)
    for name in ("copy", "nudged", "named"):
        shutil.copytree(folder, tmp_path / name)
    tensors = load_file(folder / "model.safetensors")
    bias = torch.nextafter(tensors["classifier.bias"], torch.tensor(9.0))
    save_file({**tensors, "classifier.bias": bias}, tmp_path / "nudged" / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "neutral", "1": "entailment", "2": "contradiction"}
    (tmp_path / "named" / "config.json").write_text(json.dumps(config))
    folders = [tmp_path / name for name in ("a", "copy", "nudged", "named", "a")]
    kept, notes = different_models([open_checkpoint(str(folder)) for folder in folders])
    assert [model.folder.name for model in kept] == ["a", "nudged", "named"]
    assert len(notes) == 2
    assert "copy is the same model as" in notes[0]
    assert "a is given twice: it is counted once" in notes[1]
