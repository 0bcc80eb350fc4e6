"""A file is written whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from merge.disk.atomic import replacing, write_atomic


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    """Text in UTF-8 and with its own line ends, on any system."""
    write_atomic(tmp_path / "a", "é\n")
    write_atomic(tmp_path / "b", b"\x00\r\n", sync=False)
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n"
    assert (tmp_path / "b").read_bytes() == b"\x00\r\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_in_the_middle_leaves_the_old_file_and_nothing_else(error: BaseException, tmp_path: Path) -> None:
    """The control: the same half, written in place, is what a reader would find."""
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    path.write_text("half")
    assert path.read_text() == "half"


def test_an_error_while_it_is_flushed_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk may show only when the system writes what it held in memory; unflushed, the file takes its place."""
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomic(path, "new", sync=False)
    assert path.read_text() == "new"


def test_the_file_has_the_mode_that_any_new_file_has(tmp_path: Path) -> None:
    """Whatever the writer made of the temporary one: some make files that only their owner may read."""
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "file") as temporary:
        temporary.unlink()
        temporary.write_bytes(b"")
        temporary.chmod(0o600)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_missing_folder_is_the_error_that_is_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "none" / "file", "text")


def test_threads_that_write_one_file_leave_one_whole_text(tmp_path: Path) -> None:
    """Each has a temporary file of its own, so that none is renamed while another still writes it."""
    path, texts = tmp_path / "file", [str(k) * 100_000 for k in range(8)]
    threads = [threading.Thread(target=write_atomic, args=(path, text, False)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]
