"""kill -9 at any moment of an evaluation: what is stored is whole, and the next run does what is missing only.

MERGE_MODELS_KILLS=200 pytest tests/evals/results/test_kill.py repeats it as often as you like.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.commands.evaluate_models import evaluate
from evals.results import measure
from evals.results import store as report
from evals.results.predictions import read_predictions_table
from evals.results.store import STORE, load_results
from merge.errors import TaskError

KILLS = int(os.environ.get("MERGE_MODELS_KILLS", "8"))
LIMIT = 120  # seconds after which the system ends a process of these tests, whoever was killed before
fork = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def undisturbed(zoo: Path) -> dict[str, Any]:
    """Return what a run holds that nobody killed."""
    evaluate_all(zoo, zoo / "undisturbed")
    held = contents(zoo / "undisturbed")
    assert len(held) == 2 * 4
    return held


def evaluate_all(zoo: Path, output: Path) -> None:
    words = ["score", "mnli,rte", str(zoo / "a"), str(zoo / "b"), "--data", str(zoo / "data"), "-o", str(output), "-q"]
    evaluate.main(words, standalone_mode=False)


def contents(folder: Path) -> dict[str, Any]:
    """Return all that a results folder holds by key and file, but for seconds; an error where anything is not whole."""
    records = {record["key"]: {k: v for k, v in record.items() if k != "seconds"} for record in load_results(folder)}
    files = {}
    for record in records.values():
        name = record["predictions"]
        table = read_predictions_table(folder / name)
        assert table.rows == record["rows"]
        assert len(table.ids) == record["n"]
        files[name] = (folder / name).read_bytes()
    return records | files


def child(zoo: Path, output: Path, death: int | None) -> None:
    """Evaluate; die by kill -9 at the given one of all moments at which a file is about to take its place."""
    signal.alarm(LIMIT)
    torch.set_num_threads(1)
    left = [death]
    flush = os.fsync

    def dying(handle: int) -> None:
        if left[0] is not None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        flush(handle)

    os.fsync = dying
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    evaluate_all(zoo, output)


def run(zoo: Path, output: Path, death: int | None = None, seconds: float | None = None) -> int | None:
    """Evaluate in a process of its own, killed after so many seconds if given; return its exit code."""
    process = fork.Process(target=child, args=(zoo, output, death))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


@pytest.mark.slow
def test_killed_at_every_write_all_is_whole_and_nothing_is_done_twice(
    zoo: Path, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of predictions is written, then its record, for each of four; and what is
    stored stays to the last digit, its seconds too: computed again it would have others."""
    scored: list[Any] = []
    whole = measure.score_model
    monkeypatch.setattr(measure, "score_model", lambda *given: scored.append(given[0]) or whole(*given))
    for death in range(1, 9):
        output = tmp_path / f"report{death}"
        assert run(zoo, output, death) == -signal.SIGKILL
        finished = load_results(output)
        assert len(finished) == (death - 1) // 2  # its record is the second file of each
        assert contents(output).items() <= undisturbed.items()
        scored.clear()
        evaluate_all(zoo, output)
        assert len(scored) == 4 - len(finished)
        assert [record for record in load_results(output) if record in finished] == finished
        assert contents(output) == undisturbed
        assert hidden(output) == []


@pytest.mark.slow
def test_killed_at_random_moments_it_gets_there(zoo: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """Killed again and again in one folder, until one run is left alone; then from the start."""
    chance, begun = random.Random(0), time.monotonic()
    assert run(zoo, tmp_path / "timed") == 0
    longest = time.monotonic() - begun
    output, finished, found = tmp_path / "report", [], []
    for attempt in range(KILLS):
        run(zoo, output, seconds=chance.uniform(0, longest))
        now = load_results(output)
        assert now[: len(finished)] == finished
        assert contents(output).items() <= undisturbed.items()
        found.append(len(now) - len(finished))
        finished = now
        if len(finished) == 4:
            output, finished = tmp_path / f"report{attempt}", []
    assert sum(found) > 0  # some of it was done by those that were killed
    assert run(zoo, output) == 0
    assert contents(output) == undisturbed
    assert hidden(output) == []


@pytest.mark.parametrize("file", ["store", "predictions"])
def test_a_file_that_is_not_whole_is_seen(file: str, zoo: Path, tmp_path: Path) -> None:
    """The control: half a file is no results folder."""
    evaluate_all(zoo, tmp_path)
    assert len(contents(tmp_path)) == 8
    path = tmp_path / STORE if file == "store" else next((tmp_path / "predictions").iterdir())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(TaskError, match="cannot be read" if file == "store" else "not a predictions file"):
        contents(tmp_path)


def test_a_store_written_in_place_is_caught_half_written(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the kills: without the file beside it, the same kill leaves an empty store."""

    def in_place(path: Path, text: str) -> None:
        with path.open("w", encoding="utf-8") as file:
            os.fsync(file.fileno())
            file.write(text)

    monkeypatch.setattr(report, "write_atomic", in_place)
    assert run(zoo, tmp_path, death=2) == -signal.SIGKILL
    with pytest.raises(TaskError, match="cannot be read"):
        load_results(tmp_path)


def hidden(output: Path) -> Sequence[Path]:
    """Return what was being written, and locks."""
    return [path for path in output.rglob("*") if path.name.startswith(".") or path.suffix == ".lock"]
