"""Warm processes: a command in a process of its own that does not have to import torch and transformers first.

On Linux each worker of the tests starts one server (the forkserver of multiprocessing), which imports them once and forks
for every command. Elsewhere a command is a plain subprocess. Either has another hash seed than the process of the tests, so
that the sets of names in `hash_seed` have another order there. What is tested about the start of a process itself, such as
the modules it imports, needs `subprocess`.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
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
    **_: Any,
) -> subprocess.CompletedProcess[str]:
    """Run `python [flags] -c CODE words...` to its end and return its exit code, stdout and stderr as text.

    It stands in for `subprocess.run(..., capture_output=True, text=True)`, whose other options it takes and ignores.

    Raises:
        subprocess.TimeoutExpired: it took longer; it is killed.
    """
    if not FORKS:
        more = {"capture_output": True, "text": True, "check": False, "timeout": timeout}
        environment = {**(os.environ if env is None else env), "PYTHONHASHSEED": other_seed()}
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
        process = server().Process(target=_become, args=(becomes,))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(command), timeout)
        out, err = (_text(Path(files, name)) for name in ("1", "2"))
        return subprocess.CompletedProcess(list(command), process.exitcode, out, err)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


@cache
def server() -> Any:
    """Start the server of this process and return the context that forks from it."""
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
