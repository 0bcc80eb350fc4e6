"""Staging: a folder is written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from merge.errors import OutputError, first_line

MARKER = "merging"
_BEING_WRITTEN: set[Path] = set()  # temporary folders of this process, whose id an earlier process may have had


NOT_STDOUT = "output {} would be a folder of this name; no folder is written to stdout. Choose another -o."


def check_output(output: Path, force: bool, inputs: list[Path]) -> None:
    """Stop before any work where the output folder must not be written.

    Raises:
        OutputError: it exists (without force), holds no checkpoint that force may replace, is one of the inputs, or lies in
            one.
    """
    if str(output) == "-":
        raise OutputError(NOT_STDOUT.format(output))
    target = output.resolve()
    for folder in inputs:
        source = folder.resolve()
        if target == source or target in source.parents:
            raise OutputError(f"output {output} is, or holds, the input {folder}. Choose another -o.")
    check_outside(output, inputs)
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise OutputError(f"output {output} exists and is not a folder. Choose another -o.")
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"output {output} cannot be made: {parent} is not a folder that can be written to.")
    if not output.exists():
        return
    if not force:
        raise OutputError(f"output {output} exists. Choose another -o, or --force to replace it.")
    if any(output.iterdir()) and not _holds_checkpoints(output):
        raise OutputError(f"output {output} holds no checkpoint (no config.json); --force replaces only checkpoints.")


def check_outside(output: Path, models: Iterable[Path]) -> None:
    """Stop where an output lies in the folder of a model, whose files a push uploads and a manifest states.

    Raises:
        OutputError: says where it may lie.
    """
    target = output.resolve()
    for folder in models:
        source = folder.resolve()
        if source in target.parents:
            raise OutputError(
                f"output {output} lies in the folder of the model {folder}. Choose an -o outside of it, such as "
                f"{source.with_name(f'{source.name}-{target.name}')}."
            )


def space_fault(output: Path, need: int) -> str | None:
    """Return what is wrong where the disk of an output has fewer free bytes than will be written; None where nothing is."""
    free = shutil.disk_usage(next(folder for folder in output.resolve().parents if folder.exists())).free
    if need <= free:
        return None
    return (
        f"the disk of {output} has {free:,} bytes free, but this needs {need:,} bytes. Choose another -o, or make room."
    )


def output_notes(output: Path, force: bool, inputs: list[Path], dry_run: bool) -> tuple[str, ...]:
    """Check the output folder; in a dry run, which writes nothing, a fault is returned as a note.

    Raises:
        OutputError: as `check_output`, unless it is a dry run.
    """
    try:
        check_output(output, force, inputs)
    except OutputError as error:
        if not dry_run:
            raise
        return (f"without --dry-run this command stops: {error}",)
    return ()


def _holds_checkpoints(output: Path) -> bool:
    """Return whether a folder is a checkpoint, or holds nothing but merged ones, as --heads keep-all writes them."""
    merged = ("config.json", "merge.json")
    return (output / "config.json").is_file() or all(
        all((inside / name).is_file() for name in merged) for inside in output.iterdir()
    )


@contextlib.contextmanager
def staged(output: Path, force: bool = True) -> Iterator[Path]:
    """Yield a temporary folder beside the output that becomes the output if the block succeeds.

    On any error, Ctrl-C included, the temporary folder and parents created for it are removed, and an older output stays.
    Folders that killed runs left behind are removed first.

    Args:
        force: whether an output that exists now may be replaced; one that appears later never is.
    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    target = output.resolve()
    parent, created = target.parent, [folder for folder in target.parents if not folder.exists()]
    temporary = parent / f".{target.name}.{MARKER}-{os.getpid()}"
    existed, made = force and target.exists(), False
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        temporary.mkdir()
        made = True
        _BEING_WRITTEN.add(temporary)
        yield temporary
        _sync(temporary)
        if target.exists() and not existed:
            raise OutputError(f"output {output} was written by another process meanwhile; nothing was written.")
        _replace(temporary, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"no space left on the disk of {parent}; nothing was written.") from error
        raise OutputError(f"{output} cannot be written: {first_line(error)}") from error
    finally:
        if made:  # else it is another thread's
            _remove(temporary)
            _BEING_WRITTEN.discard(temporary)
        for folder in created:
            with contextlib.suppress(OSError):  # not empty: it holds the output
                folder.rmdir()


def _remove_leftovers(target: Path) -> None:
    """Remove the temporary folders of killed runs beside the target.

    An older output that a killed run had moved aside (-old) is removed only if the target, its replacement, exists.
    """
    for left in target.parent.glob(f".{glob.escape(target.name)}.{MARKER}-*"):
        pid, old = left.name.removesuffix("-old").rsplit("-", 1)[1], left.name.endswith("-old")
        if left in _BEING_WRITTEN:
            continue
        if pid.isdigit() and not _alive(int(pid)) and (target.exists() or not old):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    """Return whether another process has this id; a folder under our own id is an earlier process's, as in containers."""
    if pid == os.getpid():
        return False
    if os.name == "nt":  # signal 0 is Ctrl-C there: what was left behind stays
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync(folder: Path) -> None:
    """Flush a folder and all in it to the disk; Windows flushes files alone, and those only when open for writing."""
    windows = os.name == "nt"
    for path in [*folder.rglob("*"), folder]:
        if windows and path.is_dir():
            continue
        handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(temporary: Path, output: Path) -> None:
    """Rename the temporary folder to the output; an existing one is moved aside first, and back if that fails."""
    if not output.exists():
        temporary.rename(output)
        return
    aside = temporary.with_name(temporary.name + "-old")
    try:
        output.rename(aside)
        temporary.rename(output)
    except BaseException:
        if output.exists():  # another process has replaced it
            _remove(aside)
        elif aside.exists():
            aside.rename(output)
        raise
    _remove(aside)


def _remove(folder: Path) -> None:
    """Remove a folder, in a second try where the first one fails; a third is the next run's."""
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return


def write_json(path: Path, value: Any) -> None:
    """Write JSON as transformers does: indented by two spaces, with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def copy_side_files(source: Path, names: tuple[str, ...], folder: Path) -> None:
    """Copy files, named by their paths relative to `source`, with their folders."""
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
