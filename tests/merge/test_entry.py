"""Entry points set what a process needs before its libraries are loaded."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from merge import entry


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_asleep_unless_the_user_wants_them_awake(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", before or "")
    if before is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    seen: list[str | None] = []
    monkeypatch.setattr(entry, "_run", lambda *_: seen.append(os.environ.get("OMP_WAIT_POLICY")))
    entry.merge_models()
    assert seen == [after]


@pytest.mark.skipif(sys.platform == "win32", reason="no shell of POSIX")
@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("words", "code"), [("recipes ties", 0), ("recipes nosuch", 2)])
def test_a_closed_stream_changes_no_exit_code(closed: str, words: str, code: int) -> None:
    """As under a scheduler: a message that nobody reads is no fault of the program. The control: the streams open."""
    start = f'"{sys.executable}" -c "from merge.entry import merge_models; merge_models()" {words}'
    for end in (closed, ">/dev/null 2>&1"):
        done = subprocess.run(["sh", "-c", f"{start} {end}"], check=False, timeout=120)
        assert done.returncode == code


@pytest.mark.skipif(sys.platform == "win32", reason="no shell of POSIX")
def test_no_file_takes_the_number_of_a_closed_stream() -> None:
    """What a library prints to number 2 would stand in that file."""
    code = (
        "import os; from merge.entry import _open_closed_streams as f; f(); print(os.open(os.devnull, os.O_RDONLY) > 2)"
    )
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "{code}" 2>&-'], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "True\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("made", [KeyboardInterrupt(), RuntimeError("schema"), None])
def test_ctrl_c_during_imports_is_one_line_whatever_a_library_makes_of_it(
    made: BaseException | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control: the same error without Ctrl-C is raised as it is."""

    def load(interrupted: bool) -> Callable[[], None]:
        try:
            if interrupted:
                os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            pass
        if made is not None:
            raise made
        return lambda: None

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stop:
            entry._run("merge-models", lambda: load(True))
        assert stop.value.code == 130
        assert capsys.readouterr().err == "merge-models: interrupted; no incomplete output is left\n"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if isinstance(made, RuntimeError):
            with pytest.raises(RuntimeError, match="schema"):
                entry._run("merge-models", lambda: load(False))
    finally:
        signal.signal(signal.SIGINT, before)
        gc.unfreeze()
