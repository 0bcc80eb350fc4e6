"""Warm processes: a command in a process of its own that does not have to import torch and transformers first.

On Linux each worker of the tests forks one server before its first test, which has all that the worker imported and
nothing that a test did, and forks for every command. Elsewhere a command is a plain subprocess. What is tested about the
start of a process itself, such as the modules it imports, needs `subprocess`.

A command that is to have another hash seed, so that the sets of names in `hash_seed` have another order, is forked from a
server that imports all anew (the forkserver of multiprocessing), which takes eight CPU seconds.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from hash_seed import other_seed

HERE = Path(__file__).parent
FORKS = sys.platform == "linux"
PRELOADED = (
    "pytest", "torch", "transformers", "transformers.models.bert.modeling_bert", "transformers.models.auto", "warm",
    "merge.run.run", "merge.commands.merge_models", "evals.commands.evaluate_models",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """What a forked process becomes.

    Attributes:
        flags: of the interpreter, before -c.
        code: of a program, after -c.
        words: sys.argv[1:].
        environment: all of it.
        folder: the working directory.
        files: holds stdin, and takes stdout and stderr.
    """

    flags: tuple[str, ...]
    code: str
    words: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str
    files: str


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    input: str = "",
    timeout: float = 180,
    reseeded: bool = False,
    **_: Any,
) -> subprocess.CompletedProcess[str]:
    """Run `python [flags] -c CODE words...` to its end and return its exit code, stdout and stderr as text.

    It stands in for `subprocess.run(..., capture_output=True, text=True)`, whose other options it takes and ignores.

    Args:
        reseeded: whether the process has another hash seed than this one.
    Raises:
        subprocess.TimeoutExpired: it took longer; it is killed.
    """
    if not FORKS:
        more = {"capture_output": True, "text": True, "check": False, "timeout": timeout}
        environment = {**(os.environ if env is None else env)} | ({"PYTHONHASHSEED": other_seed()} if reseeded else {})
        return subprocess.run(list(command), env=environment, cwd=cwd, input=input, **more)
    start = list(command).index("-c")
    assert command[0] == sys.executable
    with tempfile.TemporaryDirectory(prefix="warm-") as files:
        Path(files, "0").write_text(input, encoding="utf-8")
        becomes = Command(
            flags=tuple(command[1:start]),
            code=command[start + 1],
            words=tuple(command[start + 2 :]),
            environment=dict(os.environ if env is None else env),
            folder=str(Path.cwd() if cwd is None else cwd),
            files=files,
        )
        status = (_run_reseeded if reseeded else _run)(becomes, timeout)
        if status is None:
            raise subprocess.TimeoutExpired(list(command), timeout)
        out, err = (_text(Path(files, name)) for name in ("1", "2"))
        return subprocess.CompletedProcess(list(command), status, out, err)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _run(becomes: Command, timeout: float) -> int | None:
    """Return the exit code of a command that the server of this process forks; None where it took longer and was killed."""
    server().send(becomes)
    process = server().recv()
    if not server().poll(timeout):
        os.kill(process, signal.SIGKILL)
        server().recv()
        return None
    return int(server().recv())


def _run_reseeded(becomes: Command, timeout: float) -> int | None:
    """Return what `_run` does, of a command that is forked from a server with another hash seed."""
    process = reseeded_server().Process(target=_become, args=(becomes,))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return int(process.exitcode)


@cache
def server() -> Connection:
    """Fork the server of this process, before any thread of a computation is there, and return the line to it."""
    for module in PRELOADED:
        importlib.import_module(module)
    line, far_end = multiprocessing.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a worker has a thread that waits for its next test
        child = os.fork()
    if child == 0:
        line.close()
        _serve(far_end)
    far_end.close()
    return line


def _serve(line: Connection) -> NoReturn:
    """For each command, fork a process: send its number at once and its exit code when it ends; end with the caller."""
    atexit._clear()
    logging.getLogger().handlers.clear()
    while True:
        try:
            command = line.recv()
        except EOFError:
            os._exit(0)
        process = os.fork()
        if process == 0:
            line.close()
            try:
                _become(command)
            finally:
                os._exit(1)
        line.send(process)
        line.send(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


@cache
def reseeded_server() -> Any:
    """Start the server with another hash seed and return the context that forks from it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    # Python 3.11 does not hand sys.path to the server
    with mock.patch.dict(os.environ, PYTHONPATH=paths, PYTHONHASHSEED=other_seed()):
        multiprocessing.forkserver.ensure_running()
    return context


def _become(command: Command) -> NoReturn:
    """Be the command's process, from its first line to its exit code."""
    os.chdir(command.folder)
    os.environ.clear()
    os.environ.update(command.environment)
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_CREAT), (2, os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(Path(command.files, str(number)), flags), number)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", buffering=1) for n in (1, 2))  # noqa: PTH123, SIM115
    sys.argv = ["-c", *command.words]
    own = [] if "-P" in command.flags else [""]
    given = [path for path in command.environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*own, *given, *(path for path in sys.path if path not in ("", str(HERE), *given))]
    _filter_warnings()
    for flag, option in zip(command.flags, command.flags[1:], strict=False):
        if flag == "-W":
            warnings._setoption(option)  # type: ignore[attr-defined]
    _read_hub_settings()
    status = _status(command.code)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _filter_warnings() -> None:
    """Show the warnings that a fresh Python shows: pytest has them all raised."""
    warnings.resetwarnings()
    for category in (ResourceWarning, ImportWarning, PendingDeprecationWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")


def _status(code: str) -> int:
    """Run a program and return its exit code, as Python itself does it."""
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        sys.stderr.write(f"{stop.code}\n")
        return 1
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        return 1
    return 0


def _read_hub_settings() -> None:
    """Let huggingface_hub read HF_ENDPOINT, HF_HOME and their kin again, which it does when it is imported."""
    constants = importlib.import_module("huggingface_hub.constants")
    importlib.reload(constants)
    importlib.import_module("huggingface_hub.hf_api").api.endpoint = constants.ENDPOINT
