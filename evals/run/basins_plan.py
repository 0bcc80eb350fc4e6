"""What a sweep over many models is asked for, here without loading torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.options import EvalOptions
from merge.checkpoints.weights.arrays import check_device
from merge.errors import UsageError, nearest

if TYPE_CHECKING:
    from evals.tasks.task import EvalTask
    from merge.text.source import TextSource

ALIGN_TO = ("pair", "reference")
LEAST_POINTS = 3


@dataclass(frozen=True)
class AskedDiagnostic:
    """A further score of every model: a task, one of its scores (None: the first), and the file of its rows (None: its own)."""

    task: EvalTask
    score: str | None = None
    data: Path | None = None


def asked_diagnostic(name: str, data: Path | None) -> AskedDiagnostic:
    """Return the diagnostic that TASK or TASK:SCORE names.

    Raises:
        UsageError: there is no such task (the nearest is named), or a part is empty.
    """
    from evals.tasks import find_task

    task, colon, score = name.partition(":")
    if not task or (colon and not score):
        raise UsageError(f"a diagnostic is TASK or TASK:SCORE, such as hans:hans_lo; found {name!r}.")
    return AskedDiagnostic(find_task(task), score or None, data)


@dataclass(frozen=True)
class BasinsPlan:
    """What a sweep measures, and on how many processes.

    Attributes:
        points: of the even grid of lam.
        references: models that every other is paired with, by name; all pairs where there are none.
        align_to: one of ALIGN_TO: each pair is aligned by itself, or every model to the first reference (the first model).
        processes: None for one a core, or one a GPU.
        backend: of joblib.
        verify: how many of the best ranked subsets are averaged and measured.
        averages: further subsets, by the index of their models, that are averaged and measured.
        analysis: fields of `AnalysisSettings` that are not its defaults.
        dry_run: whether the cost alone is wanted.
        text: what the maps of stitches are fitted on; that of the alignment where None.
    """

    points: int = 11
    diagnostics: tuple[AskedDiagnostic, ...] = ()
    references: tuple[str, ...] = ()
    align_to: str = "pair"
    processes: int | None = None
    backend: str = "loky"
    verify: int = 0
    averages: tuple[tuple[int, ...], ...] = ()
    analysis: Mapping[str, Any] = field(default_factory=dict)
    dry_run: bool = False
    text: TextSource | None = None


def check_plan(plan: BasinsPlan, options: EvalOptions) -> None:
    """Stop where an option of a sweep is out of range, before anything is read.

    Raises:
        UsageError: names the option and what it takes.
    """
    from evals.clusters.sweep.workers import check_backend

    check_device(options.device)
    check_backend(plan.backend)
    if plan.points < LEAST_POINTS:
        raise UsageError(f"points must be at least {LEAST_POINTS}, found {plan.points}.")
    if plan.processes is not None and plan.processes < 1:
        raise UsageError(f"processes must be at least 1, found {plan.processes}.")
    if plan.align_to not in ALIGN_TO:
        raise UsageError(f"unknown --align-to {plan.align_to!r}.{nearest(plan.align_to, ALIGN_TO)}")
