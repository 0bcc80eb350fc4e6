"""Tasks on several processes: their errors reach the command, and a process that is killed is one line that says what it did."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from evals.clusters.sweep.workers import BACKENDS, Crew, Task, check_backend
from merge.errors import MergeError, TaskError, UsageError


def running(folder: Path) -> Path:
    (folder / "sweep" / "running").mkdir(parents=True)
    return folder / "sweep" / "running"


def count(folder: Path) -> Callable[[], int]:
    return lambda: len(list(folder.glob("*.done")))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line_that_names_its_pair(tmp_path: Path) -> None:
    """And says how many results are kept; the same tasks without the kill all end (control)."""
    folder = running(tmp_path)
    done = [f"open({str(tmp_path / f'{k}.done')!r}, 'w').close()" for k in range(3)]
    die = f"open({str(folder / '1')!r}, 'w').write('a - b, naive'); import os; os.kill(os.getpid(), 9)"
    whole: list[Task] = [(exec, (code,)) for code in done]
    Crew(2, "loky", folder).run(whole, "pairs", 3, count(tmp_path))
    assert count(tmp_path)() == 3
    message = r"^a worker process ended while a - b, naive was measured \(TerminatedWorkerError: .*3 of 4 results .* are kept in"
    with pytest.raises(MergeError, match=message) as fault:
        Crew(2, "loky", folder).run([*whole, (exec, (die,))], "pairs", 4, count(tmp_path))
    assert "\n" not in str(fault.value)
    assert "goes on from there" in str(fault.value)


@pytest.mark.parametrize(("message", "shown"), [("A worker stopped while some jobs were given to", 0), ("Another", 1)])
def test_a_replaced_worker_is_no_warning(message: str, shown: int, tmp_path: Path) -> None:
    """As loky warns of it; any other warning comes through (control)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Crew(1, "loky", running(tmp_path)).run([(warnings.warn, (message,))], "pairs", 0, count(tmp_path))
    assert len(caught) == shown


def fail() -> None:
    raise TaskError("a - b, naive: no.")


def test_an_error_of_a_task_is_the_error_of_the_command(tmp_path: Path) -> None:
    """Tasks before it have ended, and those behind it do not begin; one process runs them in their order."""
    touch = [(exec, (f"open({str(tmp_path / f'{k}.done')!r}, 'w').close()",)) for k in range(2)]
    with pytest.raises(TaskError, match="^a - b, naive: no.$"):
        Crew(1, "loky", running(tmp_path)).run([touch[0], (fail, ()), touch[1]], "pairs", 2, count(tmp_path))
    assert [path.name for path in tmp_path.glob("*.done")] == ["0.done"]


def test_backends_are_known_by_name() -> None:
    assert "loky" in BACKENDS
    check_backend("loky")
    with pytest.raises(UsageError, match="unknown backend 'loki'. Did you mean 'loky'"):
        check_backend("loki")
