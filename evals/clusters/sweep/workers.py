"""Tasks on several processes, through joblib: on one machine by loky, on several by Ray or Dask.

Tasks write their results to the disk and return nothing, so that nothing that is finished is lost where a process is killed, and
progress is the number of files.
"""

from __future__ import annotations

import importlib.util
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.errors import MergeError, UsageError, nearest, one_line, some
from merge.progress import track

BACKENDS = ("loky", "ray", "dask")
# What has to be installed for a backend, and how.
NEEDED = {"ray": "ray", "dask": "distributed"}
POLL_SECONDS = 0.2

Task = tuple[Callable[..., None], tuple[Any, ...]]


@dataclass(frozen=True)
class Crew:
    """Where tasks run.

    Attributes:
        processes: how many at a time; 1 runs them in this process, one after the other.
        backend: of joblib, one of BACKENDS.
        running: folder with a file for each pair that is being measured.
    """

    processes: int
    backend: str
    running: Path

    def run(self, tasks: Sequence[Task], label: str, total: int, done: Callable[[], int]) -> None:
        """Run the tasks; the first error stops those not begun.

        Args:
            total: how many results the tasks write.
            done: returns how many of these are written.
        Raises:
            MergeError: of a task, or a process ended; it says which pairs were measured then.
        """
        from joblib import Parallel, delayed, parallel_config

        _clear(self.running)
        backend = self.backend if self.processes > 1 else "sequential"
        settings = {"inner_max_num_threads": 1} if backend == "loky" else {}
        with (
            _replaced_workers(),
            _shown(label, total, done),
            parallel_config(backend, n_jobs=self.processes, **settings),
        ):
            try:
                Parallel(batch_size=1)(delayed(function)(*arguments) for function, arguments in tasks)
            except (MergeError, KeyboardInterrupt):
                raise
            except Exception as error:
                if backend == "sequential":
                    raise
                raise self._ended(error, total, done()) from error

    def _ended(self, error: Exception, total: int, done: int) -> MergeError:
        """Return the error for a process that was killed, or whose code failed."""
        pairs = sorted({file.read_text(encoding="utf-8") for file in self.running.glob("*")})
        during = f"while {some(pairs, 6, '; ')} {'was' if len(pairs) == 1 else 'were'} measured" if pairs else "early"
        first = one_line(error).split(". ")[0][:200]
        return MergeError(
            f"a worker process ended {during} ({type(error).__name__}: {first}). {done} of {total} results of this step are kept "
            f"in {self.running.parent}; the same command goes on from there. Was memory full? Use fewer --processes."
        )


def check_backend(backend: str) -> None:
    """Stop where a backend is unknown, or what it needs is not installed.

    Raises:
        UsageError: names the nearest, or the extra.
    """
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}.{nearest(backend, BACKENDS)}")
    module = NEEDED.get(backend)
    if module and importlib.util.find_spec(module) is None:
        how = "pip install 'merge-models[ray]'" if backend == "ray" else "pip install 'dask[distributed]'"
        raise UsageError(f"--backend {backend} needs {module}, which is not installed: {how}")
    if backend == "ray":
        from ray.util.joblib import register_ray

        register_ray()


@contextmanager
def _replaced_workers() -> Iterator[None]:
    """Say nothing where loky replaces a worker: it takes the weights that a worker holds for a leak of memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        yield


def _clear(folder: Path) -> None:
    for file in folder.glob("*"):
        with suppress(OSError):
            file.unlink()


@contextmanager
def _shown(label: str, total: int, done: Callable[[], int]) -> Iterator[None]:
    """Show how many results there are while the tasks run, and the time that is left."""
    ended = threading.Event()

    def show() -> None:
        for at in track(range(total), label):
            while done() <= at:
                if ended.wait(POLL_SECONDS) and done() <= at:
                    return

    thread = threading.Thread(target=copy_context().run, args=(show,), name="progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
