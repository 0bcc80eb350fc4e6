"""The processes of an evaluation join in time or fail with an error, and end with the launcher that started them."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch

from evals.predict import process_group as rendezvous
from evals.predict.process_group import end_with_launcher, join_group, local_device, rank_and_size
from evals.predict.workers import worker_group
from merge.errors import TaskError

LIMIT = 60  # seconds after which the system ends each process of these tests, whoever was killed before


def test_rank_and_size_are_those_that_torchrun_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has a GPU of its own; without torchrun there is one process, and no workers."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert rank_and_size() == (0, 1)
    assert worker_group() is None
    assert (local_device("cpu"), local_device("cuda")) == ("cpu", "cuda:0")
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert rank_and_size() == (5, 8)
    assert (local_device("cpu"), local_device("cuda")) == ("cpu", "cuda:1")


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Be the first of two processes, of which there is no second."""
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rendezvous, "JOIN_TIMEOUT", timedelta(seconds=1))
    return monkeypatch


def test_no_port_to_join_at_is_an_error(two: pytest.MonkeyPatch) -> None:
    """Torchrun hands on a --master-port 0 as it is: each would look for the others where nobody can be."""
    two.setenv("MASTER_PORT", "0")
    with pytest.raises(
        TaskError, match="2 processes cannot join a group at address 127.0.0.1, port 0. Start .* --standalone"
    ):
        join_group()


@pytest.mark.parametrize("keeper", ["the first process", "torchrun"])
def test_processes_join_in_time_or_not_at_all(keeper: str, two: pytest.MonkeyPatch) -> None:
    """The other one never comes, or torchrun, which keeps the store, is gone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        two.setenv("MASTER_PORT", str(free.getsockname()[1]))
    if keeper == "torchrun":
        two.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    begun = time.monotonic()
    with pytest.raises(
        TaskError, match="process 0 of 2 reached no other process at 127.0.0.1, port .* Are all of them running"
    ):
        join_group()
    assert time.monotonic() - begun < 20
    assert not rendezvous.has_joined()


def wait_in_python() -> None:
    time.sleep(LIMIT)


def wait_in_torch() -> None:
    """Wait for others in the library, where no Python runs."""
    torch.distributed.TCPStore("127.0.0.1", 0, 2, True, timedelta(seconds=LIMIT))


def launch(wait: Callable[[], None], watching: bool, end: int) -> None:
    """Be the launcher: start one process, which holds the end of a pipe as long as it is there, and wait."""
    signal.alarm(LIMIT)
    if os.fork() == 0:
        signal.alarm(LIMIT)
        if watching:
            os.environ["TORCHELASTIC_RUN_ID"] = "none"
        else:
            os.environ.pop("TORCHELASTIC_RUN_ID", None)
        end_with_launcher()
        os.write(end, f"{os.getpid()}\n".encode())
        wait()
        os._exit(0)
    os.close(end)
    time.sleep(LIMIT)


@pytest.mark.parametrize("wait", [wait_in_python, wait_in_torch])
@pytest.mark.parametrize("watching", [True, False])
def test_a_process_ends_with_its_torchrun(
    wait: Callable[[], None], watching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torchrun is killed and can end nobody. The control is another launcher, which may end before what it started."""
    monkeypatch.setattr(rendezvous, "LAUNCHER_CHECK_SECONDS", 0.05)
    held, end = os.pipe()
    launcher = multiprocessing.get_context("fork").Process(target=launch, args=(wait, watching, end))
    launcher.start()
    os.close(end)
    with os.fdopen(held, "rb") as pipe:
        process = int(pipe.readline())
        assert select.select([pipe], [], [], 0.3)[0] == []  # it is there as long as its launcher is
        launcher.kill()
        launcher.join()
        ended = bool(select.select([pipe], [], [], 10 if watching else 1)[0])
        if not ended:
            os.kill(process, signal.SIGKILL)
    assert ended is watching
