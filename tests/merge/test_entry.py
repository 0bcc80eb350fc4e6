"""Entry points set what a process needs before its libraries are loaded."""

from __future__ import annotations

import os
import subprocess
import sys

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
