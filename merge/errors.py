"""Errors that a user can act on, and the few ways in which messages quote names and other errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class MergeError(Exception):
    """A run failed for a reason that the user can mend.

    Attributes:
        exit_code: of the command.
        picture: the end of the message that a command prints on lines of its own, such as a text with a caret under the place.
    """

    exit_code = 1
    picture = ""


class Interrupted(MergeError):
    """Ctrl-C in a command that keeps some of its work; the message says what."""

    exit_code = 130


class UsageError(MergeError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is malformed: unknown key, wrong type, duplicate key."""


class CheckpointError(MergeError):
    """A folder or Hub id is not a checkpoint that can be read."""


class MismatchError(MergeError):
    """Checkpoints that cannot be merged with one another."""


class SpecError(MergeError):
    """A permutation spec is malformed or does not fit a checkpoint."""


class AlignmentError(MergeError):
    """No alignment could be computed, or the aligned model computes another function than before."""


class CalibrationError(MergeError):
    """The calibration text cannot be read or holds nothing."""


class OutputError(MergeError):
    """The result could not be written, or does not reload."""


class HubError(MergeError):
    """The Hub refused, or cannot be reached."""


class TaskError(MergeError):
    """Evaluation data, labels or predictions do not fit the task."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ' Did you mean X? Known: X, Y.', to end an error about an unknown name; nothing where no name is known."""
    known = sorted(names)
    if not known:
        return ""
    close = _close(name, known, 1, 0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(known)}."


def closest(name: str, names: Iterable[str]) -> str:
    """Return ' Did you mean X or Y?', or nothing when no name is near; for names too many to list."""
    close = _close(name, names, 2, 0.6)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def _close(name: str, names: Iterable[str], count: int, cutoff: float) -> list[str]:
    """Return the names that are most like one, nearest first; in upper case or lower case alike."""
    by_lower = {each.lower(): each for each in names}
    return [by_lower[near] for near in difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=cutoff)]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def one_line(error: object) -> str:
    """Return all lines of an error's message as one."""
    return " ".join(str(error).split())


def brief(text: str, width: int = 60) -> str:
    """Return a text on one line, cut to `width` characters."""
    line = one_line(text)
    return line if len(line) <= width else line[: width - 3] + "..."


def listed(names: Iterable[str]) -> str:
    """Return names on one line, each cut to 60 characters: 'a, b'; 'nothing' when there are none."""
    return ", ".join(brief(name) for name in names) or "nothing"


def some(items: Sequence[str], shown: int = 3, separator: str = ", ") -> str:
    """Return the first items on one line, and how many more there are: 'a, b, c and 2 more'."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return separator.join(items[:shown]) + more
