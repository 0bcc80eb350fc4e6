"""Pick an alignment for every model, as the `align` settings ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from merge.alignment.applied import applied_alignment
from merge.alignment.matchers import ALIGNERS, aligner
from merge.alignment.settings import AlignEntry
from merge.errors import UsageError
from merge.progress import begin_phase

if TYPE_CHECKING:
    from merge.alignment.choice.candidates import Choice
    from merge.alignment.pair import Matcher, Pair
    from merge.alignment.reading import AlignmentText
    from merge.alignment.task import AlignmentTask


@dataclass(frozen=True)
class Choices:
    """The alignments that auto chose.

    Attributes:
        choices: one for each checkpoint that moves, in their order.
        text: the text that they were scored on; None where every start is common, and none was read.
    """

    choices: tuple[Choice, ...]
    text: AlignmentText | None

    @property
    def rotated(self) -> bool:
        """Whether they rotate the residual stream, for which all models have to be folded."""
        return all(choice.kept.rotated for choice in self.choices)


def choose_automatically(task: AlignmentTask, rotations: bool = False) -> Choices:
    """Return what auto chooses for every checkpoint that moves.

    Args:
        rotations: whether the residual stream of pre-LN models may be rotated: the caller then folds their norms.
    """
    from merge.alignment.choice.auto import Auto, agreed

    choices = []
    for k in task.moving:
        begin_phase("looking for a common start")
        pair = task.pair(k, text=False)
        auto = Auto(_stated_kinds(task.settings, pair), task.settings.basis, rotations)
        choices.append(auto(pair, partial(task.pair, k)))
    if rotations:
        choices = agreed(choices)
    return Choices(tuple(choices), None if all(choice.common for choice in choices) else task.text)


def picked(task: AlignmentTask, choices: Choices | None = None) -> Iterator[tuple[int, Choice, Pair | None]]:
    """Yield (number, choice, pair with the reference) of every checkpoint that moves; no pair where the start is common.

    Args:
        choices: what auto chose, where it was asked before; other alignments are picked here.
    Raises:
        UsageError: the number of files to apply is not that of the models that move.
    """
    settings = task.settings
    if settings.by == "auto":
        for k, choice in zip(task.moving, (choices or choose_automatically(task)).choices, strict=True):
            yield k, choice, None if choice.common else task.pair(k)
    elif settings.by in ALIGNERS and ALIGNERS[settings.by].joint is not None:
        yield from _matched_together(task)
    elif settings.apply is not None:
        yield from _applied(task, settings.apply)
    else:
        match = aligner(settings.by)
        for k in task.moving:
            begin_phase("reading weights")
            pair = task.pair(k)
            begin_phase(f"matching units by {settings.by}")
            choice = _chosen(match(match.compared(pair)), settings, pair)
            yield k, choice, pair


def _chosen(matcher: Matcher, settings: AlignEntry, pair: Pair) -> Choice:
    """Return the choice by one matcher, whose own tensors are let go with it."""
    from merge.alignment.choice.candidates import choose

    return choose(pair, {settings.by: matcher}, _stated_kinds(settings, pair))


def _matched_together(task: AlignmentTask) -> Iterator[tuple[int, Choice, Pair]]:
    from merge.alignment.choice.candidates import fixed
    from merge.alignment.pair import in_canonical_form

    by, pairs = task.settings.by, [task.pair(k) for k in task.moving]
    kinds = _stated_kinds(task.settings, pairs[0])
    compared = [in_canonical_form(pair) for pair in pairs]
    alignments = ALIGNERS[by].align_jointly(compared, frozenset(pairs[0].kinds()) if kinds is None else kinds)
    for k, alignment, pair in zip(task.moving, alignments, pairs, strict=True):
        yield k, fixed(alignment, by), pair


def _applied(task: AlignmentTask, paths: tuple[str, ...]) -> Iterator[tuple[int, Choice, Pair]]:
    from merge.alignment.choice.candidates import fixed

    if len(paths) != len(task.moving):
        raise UsageError(
            f"{len(task.moving)} models move, and {len(paths)} transforms are to be applied. Give one for each model but "
            "the reference, in their order, and the base's last."
        )
    for k, path in zip(task.moving, paths, strict=True):
        pair = task.pair(k)
        yield k, fixed(applied_alignment(path, pair), path), pair


def _stated_kinds(settings: AlignEntry, pair: Pair) -> frozenset[str] | None:
    """Return the kinds of axes that the settings let move; None where they are to be chosen."""
    from merge.alignment.pair import streams

    if settings.axes is not None:
        return frozenset(settings.axes)
    if settings.residual is None:
        return None
    kinds = frozenset(pair.kinds())
    return kinds - streams(kinds) if settings.residual == "identity" else kinds
