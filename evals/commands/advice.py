"""Errors that fit the command: advice that names an option which the command does not have is left out.

Models are opened, compared and aligned by the code that merges them, whose errors name options of merge-models.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from typing import Any

import click

from merge.errors import MergeError

OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_SENTENCE = re.compile(r"(?<=[.:]) (?=[A-Z])")
_CLAUSE = re.compile(r"(, or |; |, )")


def with_fitting_advice(command: click.Command) -> click.Command:
    """Return the command; an error that it raises names its own options only."""
    run = command.callback
    assert run is not None, "a command runs something"

    @functools.wraps(run)
    def callback(*args: Any, **options: Any) -> Any:
        try:
            return run(*args, **options)
        except MergeError as error:
            error.args = (fitting_advice(str(error), option_names(command)),)
            raise

    command.callback = callback
    return command


def option_names(command: click.Command) -> set[str]:
    """Return the options of a command, as they are typed."""
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def fitting_advice(message: str, options: Collection[str]) -> str:
    """Return a message without the advice that names an option which is not among `options`.

    A sentence of advice loses the alternatives that name such an option; one that is nothing else is left out.
    """
    lines = []
    for line in message.split("\n"):
        kept = [_fitting_sentence(sentence, options) for sentence in _SENTENCE.split(line)]
        lines.append(" ".join(sentence for sentence in kept if sentence))
    return "\n".join(lines)


def _fitting_sentence(sentence: str, options: Collection[str]) -> str:
    if not _foreign(sentence, options):
        return sentence
    parts = _CLAUSE.split(sentence)  # clauses and, between them, what joins them
    # From the first alternative that names a foreign option on, the words belong to it.
    first = next(at for at, clause in enumerate(parts) if _foreign(clause, options))
    return "".join(parts[: max(first - 1, 0)]) + ("." if first else "")


def _foreign(text: str, options: Collection[str]) -> bool:
    return any(name not in options for name in OPTION.findall(text))
