"""Fault injection for push: whichever read of the folder fails, it is one line, no half commit, and pushes again."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import warm
import world as worlds
from test_fuzz import contents
from tiny import save_checkpoint

from tests.loopback_hub import OWNER_TOKEN, LoopbackHub

ROOT = Path(__file__).parents[2]
# huggingface_hub reads its settings when it is imported, so the pushes are made in a process of their own.
PUSHES = """
import json, sys
from pathlib import Path
from faulty_disk import ERRORS, FaultyDisk, failing
from test_fuzz import run_command

def push(at, number, repo):
    with failing(FaultyDisk(Path("out").resolve(), at, number)) as disk:
        done = run_command(("merge-models", "push", str(Path("out").resolve()), f"me/{repo}"), wait=600)
    return {"n": at, "failed": disk.failed, "code": done.code, "err": done.err, "total": sum(disk.counts.values())}

answers = [push(0, ERRORS[0], "whole")]
for at in range(1, answers[0]["total"] + 1):
    answers += [push(at, ERRORS[at % len(ERRORS)], f"m{at}"), push(0, ERRORS[0], f"m{at}")]
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_a_push_whose_disk_fails_once_is_one_line_and_pushes_again(tmp_path: Path) -> None:
    """Every operation on the folder's files, with each error in turn."""
    folder = save_checkpoint(tmp_path / "out", worlds.bert_config(**worlds.SMALL), tokenizer=False)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# out\n", encoding="utf-8")
    before = contents(tmp_path / "out")
    with LoopbackHub(tmp_path / "cas") as hub:
        env = {
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url,
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "tests", "tests/hostile")),
            "HF_TOKEN": OWNER_TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
            "MERGE_MODELS_CACHE": str(tmp_path / "cache"),
        }  # fmt: skip
        done = warm.run([sys.executable, "-c", PUSHES], env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        first, *answers = json.loads(done.stdout.splitlines()[-1])
        assert first["code"] == 0, first
        assert first["total"] > 5
        for failed, again in zip(answers[::2], answers[1::2], strict=True):
            assert failed["failed"], failed
            assert failed["code"] in (0, 1), failed
            assert len(failed["err"].splitlines()) == (1 if failed["code"] else 0), failed
            assert again["code"] == 0, (failed, again)
        assert sum(failed["code"] for failed in answers[::2]) > first["total"] // 2
        files = {repo: set(hub.repos[repo].at("main").files) for repo in hub.repos}
    assert len(files) == first["total"] + 1
    assert set(map(frozenset, files.values())) == {frozenset(before)}
    assert contents(tmp_path / "out") == before
