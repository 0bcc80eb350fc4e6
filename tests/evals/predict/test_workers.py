"""Many processes give the results of one, to the last bit, and end together when one of them fails."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from accelerate import PartialState
from quick import quick_on
from tiny import NLI, sentence
from torch import Tensor

from evals.commands.evaluate_models import evaluate, main
from evals.predict import logits as predict
from evals.predict import workers as processes
from evals.predict.logits import in_order
from evals.predict.predictor import Predictor, make_predictor
from evals.predict.workers import Job, Share, WorkerGroup
from evals.results.predictions import read_predictions_table, write_predictions_table
from evals.tasks.task import Rows
from merge.checkpoints.inputs import Encoded
from merge.checkpoints.open import open_checkpoint
from merge.errors import TaskError

ROOT = Path(__file__).parents[3]
# Whatever goes wrong, and whoever is killed: the system ends each process of a test after this many seconds.
LIMIT = 150
# The launcher of torchrun, with a function where torchrun has a command: a fork need not import torch again.
TORCHRUN = f"""
import signal, sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from evals.commands import evaluate_models

def process(*words):
    signal.alarm({LIMIT})
    sys.argv = ["evaluate-models", *words]
    evaluate_models.exit_process = sys.exit  # the launcher waits for a function to return
    try:
        evaluate_models.main()
    except SystemExit as end:
        assert not end.code, end.code

signal.alarm({LIMIT})
local = {{"run_id": "test", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}}
two = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, start_method="fork", **local)
elastic_launch(two, process)(*sys.argv[1:])
"""


def words(zoo: Path, output: Path) -> list[str]:
    return ["score", "mnli,rte", str(zoo / "a"), str(zoo / "b"), "--data", str(zoo / "data"), "-o", str(output)]


def launched(*words: str) -> subprocess.CompletedProcess[str]:
    """Run evaluate-models in two processes, which torchrun's launcher starts."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return warm.run([sys.executable, "-c", TORCHRUN, *words], env=environment)


def files(folder: Path) -> dict[str, Any]:
    """Return what a results folder holds: records without their seconds, all other files byte for byte."""
    held: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "index.html":
            held[str(path.relative_to(folder))] = path.read_bytes()
    text = held["results.json"].decode()
    held["results.json"] = "\n".join(line for line in text.splitlines() if '"seconds"' not in line)
    return held


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two models on two tasks; the control is one logit, changed by one bit."""
    evaluate.main(words(zoo, tmp_path / "one"), standalone_mode=False)
    alone = capsys.readouterr()
    done = launched(*words(zoo, tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone.out
    assert done.stderr.count("predicting mnli with") == 2  # the first process alone shows progress
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert len(one) == 5
    assert one == two
    for path in (tmp_path / "two" / "predictions").iterdir():
        table = read_predictions_table(path)
        assert len(set(table.ids)) == len(table.ids) == 150
        logits = table.logits.copy()
        logits[7, 0] = np.nextafter(logits[7, 0], np.float32(9))
        write_predictions_table(tmp_path / "two", replace(table, logits=logits))
    changed = files(tmp_path / "two")
    assert [name for name in one if one[name] != changed[name]] == [name for name in one if name != "results.json"]


@pytest.fixture
def forked(tmp_path: Path) -> Iterator[Callable[..., list[tuple[int, str]]]]:
    """Return a function that runs evaluate-models in forked processes and returns the exit code and stderr of each.

    What is patched here is patched there; torch is loaded already. None outlives the test.
    """
    started: list[multiprocessing.process.BaseProcess] = []

    def run(arguments: Sequence[str], size: int = 2, **environment: str) -> list[tuple[int, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        fork = multiprocessing.get_context("fork")
        for rank in range(size):
            variables = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
            surroundings = {**{k: str(v) for k, v in variables.items()}, "MASTER_PORT": port, **environment}
            started.append(fork.Process(target=as_rank, args=(arguments, surroundings, tmp_path / f"stderr{rank}")))
            started[-1].start()
        for process in started:
            process.join(LIMIT)
        codes = [process.exitcode for process in started]
        assert None not in codes
        return [(codes[rank], (tmp_path / f"stderr{rank}").read_text(encoding="utf-8")) for rank in range(size)]

    yield run
    for process in started:
        process.kill()


def as_rank(arguments: Sequence[str], surroundings: Mapping[str, str], stderr: Path) -> None:
    """Be one process of an evaluation; a fork of this process has one thread only, and no group of an earlier test."""
    signal.alarm(LIMIT)
    PartialState._reset_state()  # a training in this process leaves it as that of a process alone
    os.environ.update(surroundings)
    torch.set_num_threads(1)
    sys.argv = ["evaluate-models", *arguments]
    sys.stdout, sys.stderr = (stderr.open("a", buffering=1, encoding="utf-8") for _ in range(2))
    main()


def test_a_process_that_fails_ends_all_with_one_line(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: Callable[..., list[tuple[int, str]]]
) -> None:
    """The second process cannot predict: the first alone says so, nothing is stored, and the second has done its duty."""
    whole = predict.batch_logits
    monkeypatch.setattr(predict, "batch_logits", lambda *given: (fail if os.environ["RANK"] == "1" else whole)(*given))
    (first, stderr), (second, silent) = forked([*words(zoo, tmp_path / "report"), "-q"])
    assert (first, second) == (1, 0)
    assert stderr.splitlines() == [
        f"evaluate-models: predicting mnli with {zoo / 'a'} failed on 1 of 2 processes: process 1: ValueError: planted fault"
    ]
    assert silent == ""
    assert not (tmp_path / "report").exists()


def test_a_process_that_is_killed_ends_all_with_one_line(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: Callable[..., list[tuple[int, str]]]
) -> None:
    """It says nothing any more; the first sees its connection close instead of waiting for its logits."""
    whole = predict.batch_logits
    monkeypatch.setattr(predict, "batch_logits", lambda *given: (die if os.environ["RANK"] == "1" else whole)(*given))
    (first, stderr), (second, _) = forked([*words(zoo, tmp_path / "report"), "-q"])
    assert (first, second) == (1, -signal.SIGKILL)
    (line,) = stderr.splitlines()
    assert line.startswith("evaluate-models: another process of this evaluation has ended: ")
    assert not (tmp_path / "report").exists()


def test_the_first_process_killed_ends_all(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: Callable[..., list[tuple[int, str]]]
) -> None:
    """It cannot release its worker, which sees that the connection is closed."""
    whole = predict.batch_logits
    monkeypatch.setattr(processes, "ERROR_REPORT_SECONDS", 0.1)
    monkeypatch.setattr(predict, "batch_logits", lambda *given: (die if os.environ["RANK"] == "0" else whole)(*given))
    assert forked([*words(zoo, tmp_path / "report"), "-q"]) == [(-signal.SIGKILL, ""), (1, "")]
    assert not (tmp_path / "report").exists()


def test_a_mistake_in_the_words_is_said_once(zoo: Path, forked: Callable[..., list[tuple[int, str]]]) -> None:
    """Nothing was predicted; the worker is released all the same."""
    (first, stderr), (second, silent) = forked(["score", "mnly", str(zoo / "a"), "-q"])
    assert (first, second, silent) == (2, 0, "")
    assert "unknown task 'mnly'" in stderr
    assert len(stderr.splitlines()) == 1


def fail(*_: object) -> None:
    raise ValueError("planted\nfault")


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ---- without starting any ----


@pytest.fixture
def predictor(zoo: Path) -> Predictor:
    return make_predictor(open_checkpoint(str(zoo / "a")))


@pytest.fixture
def encoded(predictor: Predictor) -> Encoded:
    generator = random.Random(1)
    texts = tuple((sentence(generator, 12), sentence(generator, 9)) for _ in range(300))
    return predictor.encode(Rows(texts, (0,) * 300, NLI, "made", "test", tuple(map(str, range(300)))))


class Loopback:
    """The workers of rank 0, in this process: they receive what is sent, and their shares come back."""

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workers = [processes._Worker(rank, size) for rank in range(1, size)]
        self.job: Job | None = None
        self.sent: list[Tensor] = []
        self.builds = 0
        for name in ("_send", "_broadcast", "_gather"):
            monkeypatch.setattr(processes, name, getattr(self, name[1:]))

    def send(self, job: Job) -> None:
        self.job, self.sent = job, []

    def broadcast(self, tensor: Tensor) -> Tensor:
        self.sent.append(tensor.clone())
        return tensor

    def gather(self, share: Share) -> list[Share]:
        assert self.job is not None
        tensors = {fact[0]: tensor for fact, tensor in zip(self.job.tensors, self.sent, strict=True)}
        done = [worker.do(self.job, tensors) for worker in self.workers]
        models = [worker.model for worker in self.workers]
        self.workers = [worker for _, worker in done]
        self.builds += sum(worker.model is not before for worker, before in zip(self.workers, models, strict=True))
        return [*(other for other, _ in done[::-1]), share]  # in whatever order they come


@pytest.mark.parametrize("size", quick_on((3,), [2, 3, 40]))
def test_shared_logits_are_those_of_one_process(
    size: int, predictor: Predictor, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with more processes than batches too; a model is built once, and takes the next weights."""
    loopback = Loopback(size, monkeypatch)
    shared = replace(predictor, workers=WorkerGroup(size))
    assert len(encoded.batches) < 40
    first = predictor.logits(encoded)
    assert torch.equal(shared.logits(encoded), first)
    other = {name: 1.5 * tensor for name, tensor in predictor.model.state_dict().items()}
    predictor.set({name: other[name] for name in map(predictor.like.written_name, predictor.like.tensors)})
    assert torch.equal(shared.logits(encoded), predictor.logits(encoded))
    assert not torch.equal(predictor.logits(encoded), first)
    assert loopback.builds == size - 1
    assert shared.steps(encoded) == len(range(0, len(encoded.batches), size))


def test_batches_put_together_in_another_order_are_seen(predictor: Predictor, encoded: Encoded) -> None:
    """The control: the plan of batches decides which row a logit belongs to."""
    from evals.predict.logits import batch_logits, probe_batch

    parts = batch_logits(predictor.model, encoded.batches, encoded.rows, probe_batch(encoded))
    assert torch.equal(in_order(parts, encoded), predictor.logits(encoded))
    assert not torch.equal(in_order(parts[::-1], encoded), predictor.logits(encoded))


def test_a_worker_that_fails_names_itself(
    predictor: Predictor, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It returns its error instead of making the others wait, and builds a new model for the next job."""
    loopback = Loopback(3, monkeypatch)
    shared = replace(predictor, workers=WorkerGroup(3))
    with monkeypatch.context() as patch:
        patch.setattr("merge.checkpoints.transformers_model.build", lambda *_: [][0])
        with pytest.raises(TaskError, match="on 2 of 3 processes: process 2: IndexError: .*; process 1: IndexError"):
            shared.logits(encoded)
    assert torch.equal(shared.logits(encoded), predictor.logits(encoded))
    assert loopback.builds == 2


def test_an_error_of_rank_0_is_raised_after_the_shares_are_gathered(
    predictor: Predictor, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers wait for every process to give its share: without that of rank 0 they would wait for ever."""
    Loopback(2, monkeypatch)
    gathered: list[Share] = []
    monkeypatch.setattr(processes, "_gather", lambda share: gathered.append(share) or [share])

    def fail(*_: object) -> None:
        raise MemoryError("full")

    monkeypatch.setattr("evals.predict.logits.batch_logits", fail)
    with pytest.raises(MemoryError, match="full"):
        replace(predictor, workers=WorkerGroup(2)).logits(encoded)
    assert [share.error for share in gathered] == ["failed"]
