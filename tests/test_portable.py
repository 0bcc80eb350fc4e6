"""Merge, edit and score run where Python lacks the calls that only Linux has, and write the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm
from tiny import NLI, save_checkpoint, write_text

ROOT = Path(__file__).parents[1]

# macOS has none of the first, Windows none of all; what shutil and subprocess themselves need on Linux is left.
NAMES = {
    "os": [
        "sched_getaffinity", "sched_setaffinity", "posix_fadvise", "posix_fallocate", "memfd_create", "splice",
        "pread", "pwrite", "preadv", "pwritev", "readv", "writev", "copy_file_range", "eventfd", "mkfifo", "nice",
        "getloadavg", "statvfs", "lockf", "sync", "fdatasync", "fchmod", "fchown", "getpriority",
    ],
    "signal": ["SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "alarm", "setitimer", "pthread_kill"],
}  # fmt: skip
MODULES = ["fcntl", "resource", "pwd", "grp", "termios", "tty", "pty"]

JOBS = """
import json, sys
from merge.commands.edit_layers import edit_main
from merge.commands.merge_models import main
from evals.commands.evaluate_models import main as evaluate_main

def job(command, *arguments):
    sys.argv = ["command", *arguments, "-q"]
    try:
        command()
    except SystemExit as stop:
        assert not stop.code, (arguments, stop.code)

job(main, "a", "b", "--align", "none", "-o", "merged")
job(main, "a", "b", "--align", "activations", "--text", "text.txt", "-o", "aligned")
job(edit_main, "drop", "merged", "--layers", "1", "-o", "edited")
job(evaluate_main, "score", "mnli", "aligned", "--data", "data", "-o", "report")
"""

# Libraries choose their calls by the system when they are imported: psutil and shutil are left those of Linux.
PRELUDE = f"""
import os, psutil, shutil, signal, sys
usage = shutil.disk_usage(".")
shutil.disk_usage = lambda _: usage
for module, names in {NAMES!r}.items():
    for name in names:
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
for name in {MODULES!r}:
    sys.modules[name] = None
"""

# A warm process has imported our modules with what Linux has, and the library of locks, which are chosen at its import.
OURS = """
import sys
for name in [*sys.modules]:
    if name.partition(".")[0] in ("merge", "evals", "filelock"):
        del sys.modules[name]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of two models, a text and rows to score them on."""
    for seed, name in enumerate("ab"):
        save_checkpoint(tmp_path / name, seed=seed)
    write_text(tmp_path / "text.txt", 40)
    rows = [{"sentence1": "the cat .", "sentence2": "a dog .", "label": NLI[k % 3]} for k in range(12)]
    (tmp_path / "data/mnli").mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data/mnli/validation_matched.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def run(place: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return warm.run([sys.executable, "-c", code], cwd=place, env=environment)


def outputs(place: Path) -> dict[str, bytes]:
    """Return what the jobs wrote, and take it away; of the scores all but how long they took."""
    written = {}
    for name in ("merged", "aligned", "edited", "report"):
        for path in sorted((place / name).rglob("*")):
            if path.is_file():
                written[path.relative_to(place).as_posix()] = path.read_bytes()
        (place / name).rename(place / f"{name}-{len(list(place.glob(f'{name}-*')))}")
    (record,) = json.loads(written.pop("report/results.json"))["results"]
    written["scores"] = json.dumps([record["scores"], record["intervals"], record["model"]]).encode()
    return {name: data for name, data in written.items() if not name.startswith("report/")}


@pytest.mark.slow
def test_the_main_jobs_need_no_call_that_only_linux_has(place: Path) -> None:
    """In a process without them a merge, an alignment, an edit and scores come out byte for byte as with them.

    Our modules are imported there; torch and transformers are as Linux has them.
    """
    done = run(place, JOBS)
    assert done.returncode == 0, done.stderr
    usual = outputs(place)
    assert {"merged/model.safetensors", "aligned/merge.json", "edited/model.safetensors", "scores"} <= usual.keys()
    bare = run(place, OURS + PRELUDE + JOBS)
    assert bare.returncode == 0, bare.stderr
    assert outputs(place) == usual


def test_a_call_that_only_linux_has_is_caught(place: Path) -> None:
    """The control: each name is gone in that process, so that whoever calls it ends in a traceback."""
    for line in ("os.sched_getaffinity(0)", "os.pwrite(1, b'', 0)", "signal.SIGHUP", "import fcntl", "import resource"):
        result = run(place, f"{OURS + PRELUDE}\n{line}")
        assert result.returncode == 1
        assert "AttributeError" in result.stderr or "ModuleNotFoundError" in result.stderr
