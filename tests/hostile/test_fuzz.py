"""Fuzzer: whatever a file holds, a command ends with 0, or with one line and 1 or 2, soon, and leaves nothing behind.

MERGE_MODELS_FUZZ=20000 pytest tests/hostile/test_fuzz.py runs more cases; MERGE_MODELS_FUZZ_SEED=7 runs others, and
MERGE_MODELS_FUZZ_KINDS="study" those of kinds whose name has one of these words.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import pytest
import studies
import world as worlds

CASES = int(os.environ.get("MERGE_MODELS_FUZZ", "2000"))
SEED = int(os.environ.get("MERGE_MODELS_FUZZ_SEED", "0"))
MAX_SECONDS = 10  # of the processor, for one command
MAX_WAIT = 60  # by the clock: a busy machine runs a command many times slower
KEPT = "studies"
KEPT_COPY: list[Path] = []  # where the studies are kept as they were
MAX_GROWTH_MB = 256  # of the peak, in one case
MAX_BYTES = 1 << 31  # of memory beyond what the process has before the cases


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str
    seconds: float


class Hang(BaseException):
    """A command took longer than MAX_SECONDS."""


def run_command(words: tuple[str, ...], wait: float = MAX_WAIT) -> Outcome:
    """Run a command in this process, as its entry point does."""
    from merge.commands.edit_layers import edit_command
    from merge.commands.merge_models import COMMANDS, merge_command
    from merge.commands.stitch_models import stitch_command
    from merge.commands.terminal import start

    evaluate = importlib.import_module("evals.commands.evaluate_models").evaluate
    name, arguments = words[0], list(words[1:])
    command: Any = {
        "merge-models": merge_command,
        "edit-layers": edit_command,
        "evaluate-models": evaluate,
        "stitch-models": stitch_command,
    }[name]
    if name == "merge-models" and arguments[0] in COMMANDS:
        command, name, arguments = COMMANDS[arguments[0]], f"{name} {arguments[0]}", arguments[1:]
    out, err, code, begun = io.StringIO(), io.StringIO(), 0, time.process_time()
    timers = {
        signal.SIGALRM: (signal.ITIMER_REAL, wait),
        signal.SIGPROF: (signal.ITIMER_PROF, wait / MAX_WAIT * MAX_SECONDS),
    }
    before = {number: signal.signal(number, _hang) for number in timers}
    before[signal.SIGTERM] = signal.getsignal(signal.SIGTERM)
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("default")
            start(command, name, arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except (Hang, Exception) as error:  # noqa: BLE001 - a command that raises is what is looked for
        code = 70
        err.write(f"{error}\n{traceback.format_exc()[-1500:]}")
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    return Outcome(code, out.getvalue(), err.getvalue(), time.process_time() - begun)


def _hang(_signal: int, _frame: Any) -> None:
    raise Hang(f"longer than {MAX_SECONDS} s of the processor, or {MAX_WAIT} s by the clock")


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Return path -> size and time of every entry of a folder that is no folder itself, links not followed."""
    found, pending = dict[str, tuple[int, int]](), [str(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    status = entry.stat(follow_symlinks=False)
                    found[entry.path[len(str(folder)) + 1 :]] = (status.st_size, status.st_mtime_ns)
    return found


def faults_of(outcome: Outcome, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return what is wrong with how a command ended."""
    faults = []
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    if len(lines) == 3 and lines[2].strip() == "^":  # the text of a plan, with a caret under the place
        lines = lines[:1]
    if outcome.code not in (0, 1, 2):
        faults.append(f"exit {outcome.code}")
    if "Traceback" in outcome.err + outcome.out or "Warning: " in outcome.err:
        faults.append("traceback or warning")
    if outcome.code in (1, 2) and len(lines) != 1:
        faults.append(f"{len(lines)} lines")
    if "MemoryError" in outcome.err or "not enough memory" in outcome.err:
        faults.append("out of memory")
    new = {name for name in after.keys() - before.keys() if outcome.code or not name.startswith("out/")}
    kept = f"{KEPT}/"  # where a study that fails may leave what it can go on from
    new = {name for name in new if not (name.startswith(kept) and "/surface/" in name)}
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    if outcome.code:
        faults += [f"left behind: {name}" for name in sorted(new)]
        faults += [f"changed: {name}" for name in sorted(changed) if not name.startswith(kept)]
    else:
        hidden = sorted(
            name for name in after.keys() - before.keys() if any(p.startswith(".") for p in Path(name).parts)
        )
        faults += [f"left behind: {name}" for name in hidden]
    return faults


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder that the cases run in, where the files that commands themselves write are made too."""
    folder = worlds.make_world(tmp_path_factory.mktemp("world"))
    before, undrawn = Path.cwd(), studies.undrawn()
    os.chdir(folder)
    try:
        for words in worlds.PREPARED:
            outcome = run_command(words, wait=600)
            assert outcome.code == 0, outcome.err
        shutil.copyfile("merged/transform.safetensors", "transform.safetensors")
        yield folder
    finally:
        undrawn.undo()
        os.chdir(before)


@pytest.fixture(scope="module")
def studied(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the cases with studies in it, finished and stopped ones, and with what they read."""
    studies.add_studies(world)
    for words in studies.PREPARED:
        outcome = run_command(words, wait=600)
        assert outcome.code == 0, outcome.err
    stopping = studies.interrupted(2)
    assert [run_command(words, wait=600).code for words in studies.STOPPED] == [130] * len(studies.STOPPED)
    stopping.undo()
    KEPT_COPY[:] = [Path(shutil.copytree(KEPT, tmp_path_factory.mktemp("kept") / KEPT))]
    return world


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process have MAX_BYTES more than it has now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MAX_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def try_case(case: cases.Case, world: Path) -> tuple[Outcome, list[str]]:
    """Run one case and put the world back."""
    path, sound = world / case.file, (world / case.file).read_bytes()
    kept = {name: (world / name).read_bytes() for name in worlds.WRITTEN}
    cases.place(case, world)
    before, peak = contents(world), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = run_command(case.command)
    faults = faults_of(outcome, before, contents(world))
    if (grown := (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) >> 10) > MAX_GROWTH_MB:
        faults.append(f"took {grown} MB more than any case before")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(sound)
    for name, data in kept.items():
        if (world / name).read_bytes() != data:
            (world / name).write_bytes(data)
    for name in {Path(word).name for word in case.command if word.startswith(f"{KEPT}/")}:
        shutil.rmtree(world / KEPT / name)
        shutil.copytree(KEPT_COPY[0] / name, world / KEPT / name)
    for left in ("out", "merged-report"):
        shutil.rmtree(world / left, ignore_errors=True)
    return outcome, faults


@pytest.mark.fuzz
@pytest.mark.slow
@pytest.mark.timeout(max(300, CASES))
@pytest.mark.parametrize("part", range(cases.PARTS))
def test_no_file_brings_a_command_down(
    part: int, world: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every case ends by itself, within MAX_SECONDS, in bounded memory, with one line where it fails."""
    monkeypatch.setenv("MERGE_MODELS_CACHE", str(tmp_path / "cache"))
    if cases.with_studies(part):
        request.getfixturevalue("studied")
    seen: Counter[str] = Counter()
    wrong = []
    slowest = (0.0, "")
    with bounded_memory():
        for number in range(part, CASES, cases.PARTS):
            case = cases.make_case(number, world, SEED)
            outcome, faults = try_case(case, world)
            seen[f"{case.kind} {'refused' if outcome.code else 'accepted'}"] += 1
            slowest = max(slowest, (outcome.seconds, f"case {number}: {case.command}"))
            if faults:
                words = " ".join(case.command)
                wrong.append(f"case {number} ({case.kind}, {case.file}): {words}: {faults}: {outcome.err[-600:]}")
                sys.stdout.write(wrong[-1] + "\n")
                sys.stdout.flush()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(f"{sum(seen.values())} cases, slowest {slowest}, peak memory {peak // 1024} MB\n{dict(seen)}\n")
    assert not wrong, f"{len(wrong)} of {sum(seen.values())} cases:\n" + "\n".join(wrong[:50])
    if CASES >= 1000:  # the control: mutations are seen, and not every one of them
        usual = {name for name, kind in cases.TRIED.items() if kind.share > 30 and name != "side files"}
        assert {name for name in usual if not seen[f"{name} refused"]} == set()
        assert sum(count for name, count in seen.items() if name.endswith("accepted")) > CASES // 20 // cases.PARTS


def test_the_checks_see_each_fault() -> None:
    """The control: what the fuzzer looks for is found where it is."""
    sound = Outcome(1, "", "merge-models: a: config.json cannot be read\n", 0.1)
    assert faults_of(sound, {}, {}) == []
    for outcome, before, after in (
        (Outcome(70, "", "x\n", 0.1), {}, {}),
        (Outcome(1, "", "one\ntwo\n", 0.1), {}, {}),
        (Outcome(1, "", "Traceback (most recent call last)\n", 0.1), {}, {}),
        (sound, {}, {"out/config.json": (1, 1)}),
        (sound, {"a/config.json": (1, 1)}, {"a/config.json": (1, 2)}),
        (Outcome(0, "", "", 0.1), {}, {".out.merging-5/x": (1, 1)}),
    ):
        assert len(faults_of(outcome, before, after)) == 1
