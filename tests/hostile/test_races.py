"""Several processes at once: on one output one of them writes it, whole; on one cache none of them is disturbed.

MERGE_MODELS_ROUNDS=50 pytest tests/hostile/test_races.py repeats it as often as you like.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import world as worlds
from test_fuzz import run_command

from merge.disk.hashes import file_hash
from merge.disk.staging import staged
from merge.errors import OutputError
from merge.run.verify import verify

ROUNDS = int(os.environ.get("MERGE_MODELS_ROUNDS", "8"))
FORK = multiprocessing.get_context("fork")


def repeat(words: tuple[str, ...], number: int, start: Any, rounds: int, answers: Any) -> None:
    """Run a command once a round, together with the others; {n} is this process, {r} the round."""
    for k in range(rounds):
        os.environ["MERGE_MODELS_CACHE"] = f"cache-{k}"
        start.wait(120)
        outcome = run_command(tuple(word.format(n=number, r=k) for word in words), wait=600)
        answers.put((k, number, outcome.code, outcome.err))


def together(words: tuple[str, ...], processes: int) -> list[tuple[int, int, int, str]]:
    """Return (round, process, exit code, stderr) of every run."""
    start, answers = FORK.Barrier(processes), FORK.SimpleQueue()
    running = [FORK.Process(target=repeat, args=(words, n, start, ROUNDS, answers)) for n in range(processes)]
    for process in running:
        process.start()
    said = [answers.get() for _ in range(processes * ROUNDS)]
    for process in running:
        process.join(60)
        assert process.exitcode == 0
    return sorted(said)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = worlds.make_world(tmp_path / "world")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MERGE_MODELS_CACHE", "cache")
    assert run_command(("merge-models", "-q", "a", "b", "-o", "alone"), wait=600).code == 0  # imports what forks share
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("force", [False, True])
def test_two_processes_on_one_output_write_it_whole(force: bool, world: Path) -> None:
    """Without --force the second says so; with it, either may be last. No part of the other is ever in it."""
    words = ("merge-models", "-q", "a", "b", "-o", "out-{r}", *(["--force"] if force else []))
    answers = together(words, 2)
    codes = Counter(code for _, _, code, _ in answers)
    assert codes[0] >= ROUNDS
    assert set(codes) <= {0, 1}
    assert all(len(err.splitlines()) == (1 if code else 0) for _, _, code, err in answers)
    for k in range(ROUNDS):
        done = [code for r, _, code, _ in answers if r == k]
        assert 0 in done
        assert force or done.count(0) == 1
        assert verify(world / f"out-{k}").holds
    assert [path.name for path in world.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_eight_processes_on_one_cache_give_what_one_gives(world: Path) -> None:
    """Each round begins with an empty cache, which all of them fill at the same time."""
    answers = together(("merge-models", "-q", "a", "b", "-o", "out-{r}-{n}"), 8)
    assert [(code, err) for _, _, code, err in answers] == [(0, "")] * (8 * ROUNDS)
    weights = {file_hash(path / "model.safetensors") for path in world.glob("out-*")}
    assert weights == {file_hash(world / "alone" / "model.safetensors")}
    assert [str(path) for k in range(ROUNDS) for path in (world / f"cache-{k}").rglob(".*")] == []


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    """Without --force nothing is replaced, however late it comes; and nothing is left of the run that gives way."""
    output = tmp_path / "out"

    def write_late() -> None:
        with staged(output) as folder:
            (folder / "x").write_text("second", encoding="utf-8")
            output.mkdir()
            (output / "x").write_text("first", encoding="utf-8")

    with pytest.raises(OutputError, match="was written by another process meanwhile"):
        write_late()
    assert (output / "x").read_text(encoding="utf-8") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_that_was_written_after_the_check_is_kept(tmp_path: Path) -> None:
    """The other process may be done before this one begins to write."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "x").write_text("first", encoding="utf-8")

    def write_second() -> None:
        with staged(output, force=False) as folder:
            (folder / "x").write_text("second", encoding="utf-8")

    with pytest.raises(OutputError, match="was written by another process meanwhile"):
        write_second()
    assert (output / "x").read_text(encoding="utf-8") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_thread_that_finds_the_folder_of_another_leaves_it(tmp_path: Path) -> None:
    """Two merges of one process have one temporary name; the second must not remove the first one's."""
    with staged(tmp_path / "out") as folder:
        (folder / "x").write_text("first", encoding="utf-8")
        with pytest.raises(OutputError, match="cannot be written"), staged(tmp_path / "out"):
            pytest.fail("the folder is taken")
    assert (tmp_path / "out" / "x").read_text(encoding="utf-8") == "first"
