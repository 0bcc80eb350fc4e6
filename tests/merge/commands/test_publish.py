"""merge-models --push-to-hub against a Hub that runs here: one commit, read back bit for bit, and merged from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import warm
from safetensors.torch import load_file
from tiny import save_checkpoint

from tests.loopback_hub import OWNER_TOKEN, LoopbackHub

ROOT = Path(__file__).parents[3]
READ_BACK = """
import sys
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, sys.argv[2])
"""


def speak(home: Path, endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": endpoint, "HF_TOKEN": OWNER_TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    return warm.run([sys.executable, *arguments], env=env, cwd=home)


def merge_models(home: Path, endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return speak(home, endpoint, "-c", "from merge.commands.merge_models import main; main()", *arguments)


@pytest.mark.slow
def test_a_merge_is_pushed_in_one_commit_read_back_and_merged_again(tmp_path: Path) -> None:
    """The whole circle as a user goes it: merge and push, from_pretrained, then merge from the Hub id."""
    a, b = save_checkpoint(tmp_path / "a", seed=0), save_checkpoint(tmp_path / "b", seed=1)
    with LoopbackHub(tmp_path / "cas") as hub:
        done = merge_models(
            tmp_path, hub.url, "a", "b", "--align", "weights", "--axes", "ffn", "-o", "out",
            "--push-to-hub", "me/merged", "--private",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "pushed: " in done.stdout
        repo = hub.repos["me/merged"]
        assert repo.private
        pushed = repo.at("main").files
        assert set(pushed) == {
            p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()
        }
        back = speak(tmp_path, hub.url, "-c", READ_BACK, "me/merged", str(tmp_path / "back.safetensors"))
        assert back.returncode == 0, back.stderr
        written, read = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "back.safetensors")
        assert written.keys() == read.keys()
        assert all(torch.equal(written[name], read[name]) for name in written)
        again = merge_models(tmp_path, hub.url, "me/merged", "b", "-o", "again", "--json")
        assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["models"][0]["commit"]
    card = (tmp_path / "again" / "README.md").read_text(encoding="utf-8")
    assert "base_model:\n- me/merged\nbase_model_relation: merge" in card
    third, second = load_file(tmp_path / "again" / "model.safetensors"), load_file(b / "model.safetensors")
    assert all(torch.allclose(third[name], (written[name] + second[name]) / 2, atol=1e-6) for name in third)
    assert a.is_dir()


def test_a_dry_run_sends_nothing_and_a_bad_id_stops_before_the_merge(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", seed=0)
    save_checkpoint(tmp_path / "b", seed=1)
    with LoopbackHub(tmp_path / "cas") as hub:
        dry = merge_models(tmp_path, hub.url, "a", "b", "-o", "out", "--push-to-hub", "me/merged", "--dry-run")
        bad = merge_models(tmp_path, hub.url, "a", "b", "-o", "out", "--push-to-hub", "no good id")
        assert dry.returncode == 0, dry.stderr
        assert not hub.log
    assert bad.returncode == 1
    assert bad.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["push", "card"])
def test_subcommands_answer_a_missing_folder_with_one_line(command: str, tmp_path: Path) -> None:
    more = ["me/merged"] if command == "push" else ["--results", "results.json"]
    done = merge_models(tmp_path, "http://127.0.0.1:9", command, "nowhere", *more)
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr
