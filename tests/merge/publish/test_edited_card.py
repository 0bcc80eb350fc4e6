"""Cards of edited models: what they were made of, what loads them, and their scores, written in place of earlier ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import save_checkpoint

import merge
from merge.checkpoints.open import open_checkpoint
from merge.errors import CheckpointError
from merge.publish.card_results import add_results


def scored(checkpoint_hash: str, accuracy: float) -> dict[str, Any]:
    model = {"name": "m", "hash": checkpoint_hash}
    scores = {"accuracy": accuracy, "loss": 0.5}
    where = {"task": "mnli", "data": "dev.jsonl", "split": "dev", "n": 40}
    return {"kind": "scores", "key": f"{checkpoint_hash} {accuracy}", **where, "model": model, "scores": scores}


def with_results(folder: Path, *records: dict[str, Any]) -> int:
    results = folder.parent / "results.json"
    results.write_text(json.dumps({"results": records}), encoding="utf-8")
    return add_results(folder, results)


@pytest.fixture(scope="module")
def spliced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of one layer of `a` and one of `b`, of which only `a` states a licence."""
    folder = tmp_path_factory.mktemp("edited")
    for seed, name in enumerate("ab"):
        save_checkpoint(folder / name, seed=seed)
    (folder / "a" / "README.md").write_text("---\nlicense: mit\n---\n")
    merge.edit([folder / "a", folder / "b"], "A0, B1", output=folder / "out")
    return folder / "out"


def test_the_card_says_what_loads_the_model_and_no_licence_that_one_input_lacks(spliced: Path) -> None:
    header, _, body = (spliced / "README.md").read_text(encoding="utf-8").removeprefix("---\n").partition("---\n")
    assert "license" not in yaml.safe_load(header)
    assert "AutoModelForSequenceClassification.from_pretrained('out')" in body
    rows = [line for line in body.splitlines() if line.startswith(f"| {spliced.parent}")]
    hashes = [open_checkpoint(str(spliced.parent / name)).content_hash[:16] for name in "ab"]
    assert [row.split("`")[1] for row in rows] == hashes


def test_scores_enter_the_card_of_an_edit_and_replace_earlier_ones(spliced: Path) -> None:
    """What else the card says stays, and its manifest takes the new hash. The control: a card changed by hand does not verify."""
    before = (spliced / "README.md").read_text(encoding="utf-8")
    own, a = (open_checkpoint(str(path)).content_hash for path in (spliced, spliced.parent / "a"))
    assert with_results(spliced, scored(own, 0.25), scored(a, 0.5), scored("d" * 64, 0.125)) == 2
    assert with_results(spliced, scored(own, 0.75), scored(a, 0.5)) == 2
    text = (spliced / "README.md").read_text(encoding="utf-8")
    assert "| **this model** | mnli (dev.jsonl) | 40 | accuracy 0.7500 | 0.5000 |" in text
    assert f"| {spliced.parent / 'a'} | mnli (dev.jsonl) | 40 | accuracy 0.5000 | 0.5000 |" in text
    assert ("0.2500" in text, text.count("## Scores")) == (False, 1)
    kept = [line for line in before.split("---\n", 2)[2].splitlines() if line]
    assert [line for line in text.splitlines() if line in kept and line] == kept
    (entry,) = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]
    assert entry["metrics"][0] == {"type": "accuracy", "value": 0.75}
    assert merge.verify(spliced).holds
    (spliced / "README.md").write_text(text + "by hand\n", encoding="utf-8")
    assert merge.verify(spliced).files["README.md"] == "changed"


def test_results_of_other_models_leave_the_card_of_an_edit(spliced: Path) -> None:
    before = (spliced / "README.md").read_bytes()
    with pytest.raises(CheckpointError, match="holds no score of"):
        with_results(spliced, scored("d" * 64, 0.125))
    assert (spliced / "README.md").read_bytes() == before
