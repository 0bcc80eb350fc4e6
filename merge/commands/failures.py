"""Failures: the one line that a command prints for an error, and what is kept of an error that nobody foresaw."""

from __future__ import annotations

import os
import re
import time
import traceback

UNFORESEEN = 70  # the exit code of BSD's sysexits.h for a fault of the program itself
MAX_LINE = 2000  # characters
FOLDER = "faults"  # in the cache


def on_one_line(message: object, verbose: bool = False) -> str:
    """Return a message as one line that every terminal can show; with `verbose` its lines as they are.

    Several lines are joined by semicolons; characters that cannot be shown are written as escapes.
    """
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    if verbose and len(lines) > 1:
        return "\n".join(map(_shown, lines))
    line = _shown("; ".join([*(re.sub(r"(?<!\.)\.$|;+$", "", line) for line in lines[:-1]), *lines[-1:]]))
    if verbose or len(line) <= MAX_LINE:
        return line
    return f"{line[:MAX_LINE]}... ({len(line):,} characters; -v shows them all)"


def _shown(line: str) -> str:
    """Return a line with control characters and halves of surrogate pairs as escapes."""
    return "".join(
        c if c.isprintable() or c == "\t" else c.encode("unicode_escape", "backslashreplace").decode() for c in line
    )


def unforeseen(error: BaseException, verbose: bool = False) -> str:
    """Return the message on an error that nobody foresaw, whose traceback goes into a file of the cache folder."""
    # Imported here, since it takes a tenth of the time of --help.
    from merge.disk.cache import cache_folder

    text = "".join(traceback.format_exception(error))
    says = on_one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)[:300]
    if verbose:
        return f"{says}: this is a fault of merge-models: report it with these lines:\n{text}"
    try:
        folder = cache_folder() / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except (OSError, RuntimeError):
        return (
            f"{says}: this is a fault of merge-models: run the command again with -v, and report it with what it prints"
        )
    return f"{says}: this is a fault of merge-models: report it with {path}"
