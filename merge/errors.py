"""Errors that a user can act on: what was asked, where, what was found, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MergeError(Exception):
    """A run failed for a reason the user can mend; `exit_code` is what the command returns."""

    exit_code = 1


class UsageError(MergeError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe does not say a run: unknown key, wrong type, duplicate key."""


class CheckpointError(MergeError):
    """A folder or Hub id is not a checkpoint that can be read."""


class MismatchError(MergeError):
    """Checkpoints that cannot be merged with one another."""


class SpecError(MergeError):
    """A permutation spec is malformed or does not fit a checkpoint."""


class AlignmentError(MergeError):
    """Alignment could not be found, or the aligned model is not the model it was."""


class CalibrationError(MergeError):
    """The calibration text cannot be read or holds nothing."""


class OutputError(MergeError):
    """The result could not be written, or does not reload."""


class HubError(MergeError):
    """The Hub refused, or cannot be reached."""


class TaskError(MergeError):
    """Evaluation data, labels or predictions do not fit the task."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?) Known: ...', to end an error about an unknown name."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(names)}."
