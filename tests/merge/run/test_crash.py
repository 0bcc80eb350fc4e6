"""kill -9 at any moment: the output is whole or not there, the inputs are untouched, the next run cleans up.

MERGE_MODELS_KILLS=200 pytest tests/merge/run/test_crash.py repeats it as often as you like.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from tiny import bert_config, save_checkpoint

from merge.disk.hashes import file_hash
from merge.recipe.recipe import Recipe, make_recipe
from merge.run.run import run
from merge.run.verify import verify

KILLS = int(os.environ.get("MERGE_MODELS_KILLS", "12"))
# Large enough that writing takes a good part of the run.
CONFIG = bert_config(hidden_size=192, intermediate_size=768, vocab_size=4000)


def merge_again(recipe: Recipe, ready: object) -> None:
    """Merge over and over: whatever moment the kill comes at, it is in the middle of one."""
    ready.set()  # type: ignore[attr-defined]
    while True:
        run(recipe, force=True)


@pytest.mark.slow
def test_kill_9_never_leaves_a_half_written_output(tmp_path: Path) -> None:
    """Whole means: every file has the hash its manifest states. Killed at random, with and without an older output."""
    inputs = [save_checkpoint(tmp_path / name, CONFIG, seed=k, tokenizer=False) for k, name in enumerate("ab")]
    hashes = {path: file_hash(path) for folder in inputs for path in folder.iterdir()}
    output = tmp_path / "out"
    recipe = make_recipe({"models": [str(folder) for folder in inputs], "output": str(output)})
    fork, chance = multiprocessing.get_context("fork"), random.Random(0)
    seen: Counter[str] = Counter()
    for _ in range(KILLS):
        ready = fork.Event()
        process = fork.Process(target=merge_again, args=(recipe, ready))
        process.start()
        assert ready.wait(60)
        time.sleep(chance.uniform(0, 0.6))
        process.kill()
        process.join()
        left = [path for path in tmp_path.iterdir() if path.name.startswith(".out.")]
        seen["half-way" if left else "between"] += 1
        if output.exists():
            seen["output"] += 1
            assert verify(output).holds
        else:
            assert all(path.name.startswith(".out.merging-") for path in left)
    assert {path: file_hash(path) for path in hashes} == hashes
    assert seen["half-way"] > 0
    run(recipe, force=output.exists())
    assert verify(output).holds
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
