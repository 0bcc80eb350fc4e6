"""How a command ends that was asked to end, whatever a library makes of the interruption."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from merge.commands.terminal import start
from merge.errors import CheckpointError, Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Set the signals' handlers as those of a fresh process, and back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ended(error: Exception, number: int | None) -> int:
    """Return the exit code of a command that meets a signal, of which a library makes another error."""

    @click.command()
    @click.pass_context
    def command(_context: Any) -> None:
        try:
            if number is not None:
                os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            raise error from None
        raise error

    with pytest.raises(SystemExit) as stop:
        start(command, "a-command", [])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("error", [RuntimeError("schema"), OSError("read"), CheckpointError("a: cannot be read")])
def test_an_interruption_is_one_whatever_error_a_library_makes_of_it(
    error: Exception, number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """pydantic builds a validator of an error of its own. The control: the same error of no signal, even after one."""
    monkeypatch.setenv("MERGE_MODELS_CACHE", str(tmp_path))
    assert ended(error, number) == 130
    assert capsys.readouterr().err == "a-command: interrupted; no incomplete output is left\n"
    assert ended(error, None) == (70 if isinstance(error, RuntimeError) else 1)
    assert "interrupted" not in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_what_a_command_says_of_its_interruption_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(Interrupted("what was done is kept in out"), signal.SIGINT) == 130
    assert capsys.readouterr().err == "a-command: what was done is kept in out\n"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_signal_that_is_ignored_stays_so(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a command that a shell started in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert ended(CheckpointError("a: cannot be read"), signal.SIGINT) == 1
    assert capsys.readouterr().err == "a-command: a: cannot be read\n"


def test_a_path_of_a_user_that_is_not_known_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The control is above: another RuntimeError is a fault of the program."""

    @click.command()
    def command() -> None:
        Path("~nobody-of-this-name/a").expanduser()

    with pytest.raises(SystemExit) as stop:
        start(command, "a-command", [])
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("a-command: a path begins with ~, and this machine knows no home folder")
